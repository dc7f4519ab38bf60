// Several completions in order: the next best is placed, one after the other, until all are.

function makeKind(frame) {
  let cards = [], strip = null;
  const count = () => frame.item.completions.length;
  const placed = () => frame.state.groups.flat();
  const rankOf = (index) => frame.state.groups.findIndex((group) => group.includes(index));

  const inOrder = (groups) => groups.map((group) => group.map((index) => index + 1).join(" = ")).join("  >  ");

  function place(index) {
    const { groups, tie } = frame.state;
    if (placed().includes(index)) return frame.say(`${index + 1} has its place: Backspace takes the last one back.`);
    const tied = tie && groups.length > 0;
    frame.change({
      groups: tied ? [...groups.slice(0, -1), [...groups.at(-1), index]] : [...groups, [index]],
      tie: false,
    });
  }

  function takeBack(index) {
    const groups = frame.state.groups.map((group) => group.filter((each) => each !== index));
    frame.change({ groups: groups.filter((group) => group.length), tie: false });
  }

  function takeBackLast() {
    if (frame.state.tie) frame.change({ tie: false });
    else if (placed().length) takeBack(placed().at(-1));
  }

  function tieNext() {
    if (!placed().length) frame.say("Place the best one first: the next can tie with it.");
    else if (placed().length < count()) frame.change({ tie: !frame.state.tie });
  }

  function submit() {
    const missing = count() - placed().length;
    if (missing) frame.say(`Place all ${count()} first: ${missing} to go.`);
    else frame.submit({ groups: frame.state.groups });
  }

  function pressCard(index) {
    frame.act(() => (placed().includes(index) ? takeBack(index) : place(index)));
  }

  function buildCard(index) {
    const { card, head } = completionCard(frame, index);
    const rank = element("span", "wb-rank");
    const control = button(`place-${index + 1}`, "", "", () => pressCard(index));
    head.append(rank, control);
    card.classList.add("wb-clickable");
    card.addEventListener("click", (event) => {
      const selecting = String(getSelection()).length > 0; // somebody copies text
      if (event.detail < 2 && !selecting && !event.target.closest("button")) pressCard(index);
    });
    return { card, rank, control };
  }

  return {
    question: "Put the completions in order, best first.",
    keys: [["1–9", "place the next best"], ["=", "the next one ties with the last placed"],
           ["Backspace", "take the last one back"], ["Enter", "save when all are placed"]],
    actions: [
      button("tie", "Tie with the last", "=", () => frame.act(tieNext)),
      button("back", "Take back", "⌫", () => frame.act(takeBackLast)),
      button("submit", "Save the order", "⏎", () => frame.act(submit)),
    ],
    fresh: ({ earlier }) => ({ groups: earlier?.answer.groups ?? [], tie: false }),
    words: ({ groups }) => inOrder(groups),
    save: submit,
    build(item) {
      cards = item.completions.map((_, index) => buildCard(index));
      strip = element("div", "wb-strip");
      strip.setAttribute("aria-live", "polite");
      return [cardGrid(cards.map(({ card }) => card)), strip];
    },
    draw() {
      const { groups, tie } = frame.state;
      cards.forEach(({ card, rank, control }, index) => {
        const place = rankOf(index);
        card.classList.toggle("wb-placed", place >= 0);
        rank.textContent = place >= 0 ? `rank ${place + 1}` : "";
        control.textContent = place >= 0 ? "Take back" : tie ? "Place as equal" : "Place next";
        control.setAttribute("aria-label", `${control.textContent}: completion ${index + 1}`);
      });
      const order = inOrder(groups);
      strip.textContent = order ? `Best first:  ${order}${tie ? "  = …" : ""}` : "Nothing is placed yet.";
      frame.root.dataset.order = JSON.stringify(groups);
    },
    press(key) {
      const index = digitIndex(key, count());
      if (index >= 0) place(index);
      else if (key === "=") tieNext();
      else if (key === "Backspace") takeBackLast();
      else if (key === "Enter") submit();
      else return false;
      return true;
    },
  };
}
