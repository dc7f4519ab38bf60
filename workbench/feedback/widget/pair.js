// Two completions: one key or click says which is better. How much better is said before, if at all.

const STRENGTHS = ["negligibly", "slightly", "clearly", "significantly"];
const FIRST_STRENGTH_KEY = 5; // 5 6 7 8 say strength 1 2 3 4
const CHOICES = { 1: 0, ArrowLeft: 0, 2: 1, ArrowRight: 1, 3: "tie", t: "tie" };

function makeKind(frame) {
  let strengths = [];

  function choose(choice) {
    const { strength } = frame.state;
    frame.submit(strength && choice !== "tie" ? { choice, strength } : { choice });
  }

  // the same strength once more takes it back
  function setStrength(strength) {
    frame.change({ strength: frame.state.strength === strength ? 0 : strength });
  }

  function strengthRow() {
    strengths = STRENGTHS.map((word, index) =>
      button(`strength-${index + 1}`, word, String(FIRST_STRENGTH_KEY + index), () => {
        frame.act(() => setStrength(index + 1));
      }),
    );
    const row = element("div", "wb-strengths", "How much better? ");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", "how much better, if you want to say");
    row.append(...strengths);
    return row;
  }

  return {
    question: "Which completion is better?",
    keys: [["1 ←", "first is better"], ["2 →", "second is better"], ["3 t", "tie"],
           ["5 6 7 8", "how much better (before you choose; may be left out)"], ["d", "differing words"]],
    actions: [
      button("choose-1", "First is better", "1", () => frame.act(() => choose(0))),
      button("tie", "Tie", "3", () => frame.act(() => choose("tie"))),
      button("choose-2", "Second is better", "2", () => frame.act(() => choose(1))),
    ],
    fresh: ({ earlier }) => ({ strength: earlier?.answer.strength ?? 0 }),
    words({ choice, strength }) {
      const better = { 0: "first is better", 1: "second is better", tie: "tie" }[choice];
      return strength ? `${better}, ${STRENGTHS[strength - 1]}` : better;
    },
    build: (item) => [cardGrid(item.completions.map((_, index) => completionCard(frame, index).card)), strengthRow()],
    draw() {
      strengths.forEach((each, index) => each.setAttribute("aria-pressed", String(frame.state.strength === index + 1)));
    },
    press(key) {
      const strength = /^[0-9]$/.test(key) ? Number(key) - FIRST_STRENGTH_KEY + 1 : 0;
      if (key in CHOICES) choose(CHOICES[key]);
      else if (strength >= 1 && strength <= STRENGTHS.length) setStrength(strength);
      else return false;
      return true;
    },
  };
}
