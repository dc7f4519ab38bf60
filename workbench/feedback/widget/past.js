// What was judged before: a list, of which each can be looked at and judged again.

// "first is better, 14:03:20" of what Session.past tells
function saidBefore(kind, { answer, created_at }) {
  const made = new Date(1000 * created_at), today = made.toDateString() === new Date().toDateString();
  const words = Object.keys(answer).length ? kind.words(answer) : "skipped";
  return `${words}, ${today ? made.toLocaleTimeString() : made.toLocaleString()}`;
}

function makePast(frame, kind, close) {
  const node = element("div", "wb-body wb-past");
  node.hidden = true;
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "past judgements, the latest first");
  function row(said, place) {
    const made = button(`past-${place + 1}`, `${visible(said.prompt.slice(0, 80))} (${said.item_id}): `, "", () => {
      close();
      frame.send({ type: "review", of: said.event_id });
    });
    made.append(element("b", "", saidBefore(kind, said)));
    return made;
  }
  const draw = () => {
    const past = frame.model.get("past");
    node.replaceChildren(...past.map(row), past.length ? "" : "Nothing is judged yet.");
    node.querySelector("button")?.focus();
  };
  const open = (on) => {
    node.hidden = !on;
    if (on) frame.send({ type: "past" });
  };
  return { node, open, draw };
}
