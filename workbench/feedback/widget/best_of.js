// Several completions: one key or click says which is best.

function makeKind(frame) {
  function buildCard(index) {
    const { card, head } = completionCard(frame, index), key = String(index + 1);
    head.append(button(`best-${key}`, "This is best", key, () => frame.act(() => frame.submit({ best: index }))));
    return card;
  }

  return {
    question: "Which completion is best?",
    keys: [["1–9", "this one is best"]],
    actions: [],
    fresh: () => ({}),
    words: ({ best }) => `${best + 1} is best`,
    build: (item) => [cardGrid(item.completions.map((_, index) => buildCard(index)))],
    draw() {},
    press(key) {
      const index = digitIndex(key, frame.item.completions.length);
      if (index >= 0) frame.submit({ best: index });
      return index >= 0;
    },
  };
}
