// A number from 1 to 7 and flags for every completion.

const BEST = 7;

function makeKind(frame) {
  let cards = [], flagging = false, sureOfMissing = false;
  const names = () => frame.model.get("flags");
  const last = () => frame.item.completions.length - 1;
  const replaced = (list, index, value) => list.map((each, place) => (place === index ? value : each));

  function rate(index, rating) {
    sureOfMissing = false;
    frame.change({ ratings: replaced(frame.state.ratings, index, rating) });
  }

  function toggleFlag(index, name) {
    const flags = frame.state.flags[index];
    const changed = flags.includes(name) ? flags.filter((each) => each !== name) : [...flags, name];
    frame.change({ flags: replaced(frame.state.flags, index, changed) });
  }

  // The completion that keys are about is the one that has the focus, or had it last.
  function moveTo(index) {
    frame.change({ current: Math.max(0, Math.min(last(), index)) });
    cards[frame.state.current].card.focus();
  }

  function addFlag(field) {
    const name = field.value.trim();
    field.value = "";
    if (!name || names().includes(name)) return;
    frame.model.set("flags", [...names(), name]);
    frame.model.save_changes();
  }

  function submit() {
    const missing = frame.state.ratings.filter((each) => each === null).length;
    if (missing > last()) return frame.say("Rate a completion first, or skip.");
    if (missing && !sureOfMissing) {
      sureOfMissing = true;
      return frame.say(`${missing} of ${last() + 1} not rated: save once more to leave it so.`);
    }
    frame.submit({ ratings: frame.state.ratings, flags: frame.state.flags });
  }

  function ratingRow(index) {
    const row = element("div", "wb-ratings");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", `rating of completion ${index + 1}, 1 is worst and ${BEST} is best`);
    const buttons = Array.from({ length: BEST }, (_, place) =>
      button(`rate-${index + 1}-${place + 1}`, String(place + 1), "", () => frame.act(() => rate(index, place + 1))),
    );
    row.append(element("span", "wb-end", "worst"), ...buttons, element("span", "wb-end", "best"));
    return { row, buttons };
  }

  function flagRow(index) {
    const row = element("div", "wb-flags");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", `flags of completion ${index + 1}`);
    return row;
  }

  function fillFlags({ flagRow: row }, index) {
    const field = element("input", "wb-new-flag");
    field.placeholder = "new flag, Enter adds it";
    field.setAttribute("aria-label", "add a flag to the list");
    field.addEventListener("keydown", ({ key }) => key === "Enter" && addFlag(field));
    const flagButton = (name, place) => {
      const key = place < 9 ? `f${place + 1}` : "";
      return button(`flag-${index + 1}-${place + 1}`, name, key, () => frame.act(() => toggleFlag(index, name)));
    };
    row.replaceChildren(...names().map(flagButton), field);
  }

  function redrawFlags() {
    if (!frame.item.item_id) return;
    cards.forEach(fillFlags);
    kind.draw();
  }

  function buildCard(index) {
    const { card } = completionCard(frame, index), rating = ratingRow(index), flags = flagRow(index);
    card.tabIndex = 0;
    card.setAttribute("aria-label", `completion ${index + 1}`);
    card.setAttribute("role", "group");
    card.append(rating.row, flags);
    card.addEventListener("focusin", () => {
      if (frame.state.current !== index) frame.change({ current: index });
    });
    return { card, buttons: rating.buttons, flagRow: flags };
  }

  const kind = {
    question: "Rate every completion.",
    keys: [["1–7", "rate the marked completion and go on"], ["← →", "previous, next completion"],
           ["f 1–9", "flag"], ["Backspace", "no rating"], ["Enter", "save"]],
    actions: [button("submit", "Save the ratings", "⏎", () => frame.act(submit))],
    fresh: ({ completions, earlier }) => ({
      current: 0, ratings: completions.map(() => null), flags: completions.map(() => []), ...earlier?.answer,
    }),
    words: ({ ratings }) => ratings.map((each) => each ?? "–").join(", "),
    save: submit,
    build(item) {
      flagging = sureOfMissing = false;
      cards = item.completions.map((_, index) => buildCard(index));
      cards.forEach(fillFlags);
      return [cardGrid(cards.map(({ card }) => card))];
    },
    draw() {
      const { current, ratings, flags } = frame.state;
      cards.forEach(({ card, buttons, flagRow: row }, index) => {
        card.classList.toggle("wb-current", index === current);
        buttons.forEach((each, place) => each.setAttribute("aria-pressed", String(ratings[index] === place + 1)));
        row.querySelectorAll("button").forEach((each, place) => {
          each.setAttribute("aria-pressed", String(flags[index].includes(names()[place])));
        });
      });
      frame.root.dataset.answer = JSON.stringify({ ratings, flags });
    },
    press(key) {
      const { current } = frame.state, digit = /^[1-9]$/.test(key) ? Number(key) : 0, flagged = flagging;
      flagging = key === "f";
      if (flagging) frame.say(`Flag of completion ${current + 1}: press its digit.`);
      else if (flagged && digit && names()[digit - 1]) toggleFlag(current, names()[digit - 1]);
      else if (flagged) frame.say("");
      else if (digit && digit <= BEST) rate(current, digit), moveTo(current + 1);
      else if (key === "ArrowRight") moveTo(current + 1);
      else if (key === "ArrowLeft") moveTo(current - 1);
      else if (key === "Backspace") rate(current, null);
      else if (key === "Enter") submit();
      else return false;
      return true;
    },
    close: () => frame.model.off("change:flags", redrawFlags),
  };
  frame.model.on("change:flags", redrawFlags);
  return kind;
}
