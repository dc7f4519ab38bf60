// A better text: one of the completions is rewritten, or a text is written from nothing.

function makeKind(frame) {
  let cards = [], field = null;

  const textOf = (index) => (index === null ? "" : frame.item.completions[index].at(-1)?.content ?? "");

  // Each completion keeps its own changes while another one is looked at.
  function choose(index) {
    const { completion, texts } = frame.state;
    const kept = { ...texts, [completion]: field.value };
    frame.change({ completion: index, texts: kept });
    field.value = kept[index] ?? textOf(index);
  }

  function submit() {
    if (field.value.trim()) frame.submit({ text: field.value, completion: frame.state.completion });
    else frame.say("Write a text first, or skip.");
  }

  function buildCard(index) {
    const { card, head } = completionCard(frame, index), key = String(index + 1);
    const control = button(`correct-${key}`, "Correct this one", key, () => frame.act(() => choose(index)));
    head.append(control);
    return { card, control };
  }

  function buildField(item) {
    field = element("textarea", "wb-field");
    field.dir = "auto";
    field.rows = 8;
    field.setAttribute("aria-label", "the text as it should be");
    field.value = frame.state.texts[frame.state.completion] ?? textOf(frame.state.completion);
    field.addEventListener("input", () => {
      frame.state.texts[frame.state.completion] = field.value;
      frame.keepDraft();
    });
    return field;
  }

  const fromNothing = button("correct-0", "Write from nothing", "0", () => frame.act(() => choose(null)));
  return {
    question: "Write the text as it should have been.",
    keys: [["1–9", "correct this completion"], ["0", "write from nothing"], ["e", "edit the text"],
           ["Ctrl+Enter", "save"], ["Esc", "leave the field"]],
    actions: [
      fromNothing,
      button("edit", "Edit", "e", () => field.focus()),
      button("submit", "Save the text", "Ctrl+⏎", () => frame.act(submit)),
    ],
    fresh({ completions, earlier }) {
      const { text, completion = completions.length ? 0 : null } = earlier?.answer ?? {};
      return { completion, texts: text === undefined ? {} : { [completion]: text } };
    },
    words: ({ text }) => `“${text.slice(0, 40)}${text.length > 40 ? "…" : ""}”`,
    save: submit,
    build(item) {
      cards = item.completions.map((_, index) => buildCard(index));
      return [cardGrid(cards.map(({ card }) => card)), buildField(item)];
    },
    draw() {
      const { completion } = frame.state;
      cards.forEach(({ card, control }, index) => {
        card.classList.toggle("wb-chosen", index === completion);
        control.setAttribute("aria-pressed", String(index === completion));
      });
      fromNothing.setAttribute("aria-pressed", String(completion === null));
    },
    press(key) {
      const index = digitIndex(key, frame.item.completions.length);
      if (index >= 0) choose(index);
      else if (key === "0") choose(null);
      else if (key === "e" || key === "Enter") field.focus();
      else return false;
      return true;
    },
  };
}
