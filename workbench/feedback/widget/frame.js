// One item at a time: shows it, collects the answer with the help of a kind (`makeKind`, in a file of its own), and
// moves on when the kernel says that the answer is saved.
//
// A kind has: question, keys [[keys, what they do]], actions (its buttons), fresh(item) -> empty answer (plain JSON,
// kept in frame.state), build(item) -> nodes of the item, draw() shows frame.state, press(key) -> used or not; where it
// has an answer to complete, save(); where it listens to the model, close(). words(answer) are for the list of past
// judgements.

function render({ model, el: host }) {
  const root = element("section", "wb-annotate");
  root.tabIndex = 0;
  root.dataset.lmSuppressShortcuts = "true"; // or JupyterLab would take "b" for "insert a cell"
  root.dataset.kind = model.get("kind");
  const frame = { model, root, item: model.get("showing"), state: {}, texts: [], notice: "" };
  const saver = makeSaver(model, () => panels && panels.drawStatus());
  let shownAt = 0, marked = false, raw = false, panels = null;

  frame.submit = (answer, action = "label") => {
    if (!frame.item.item_id) return;
    const elapsed = Math.round(performance.now() - shownAt), { item_id, turn } = frame.item;
    const note = panels.note.field.value.trim();
    frame.notice = "";
    saver.send({ type: "judge", action, item_id, turn, answer, note, elapsed_ms: elapsed });
  };
  frame.skip = () => frame.submit({}, "skip");
  frame.undo = () => {
    if (model.get("progress").can_undo) frame.send({ type: "undo" });
    else frame.say("There is nothing to undo.");
  };
  frame.send = (message) => {
    if (saver.state === "failed" && !saver.lost) frame.say("Retry first, or answer once more.");
    else saver.send({ ...message, turn: frame.item.turn });
  };
  frame.look = () => frame.send({ type: "look" }); // others may have left something by now
  frame.leave = () => frame.send({ type: "review", of: "" });
  frame.say = (text) => {
    frame.notice = text;
    panels.drawStatus();
  };
  frame.keepDraft = () => writeDraft(frame, { state: frame.state, note: panels.note.field.value });
  // Changes the answer under way; what was said about the last one is over.
  frame.change = (changes) => {
    Object.assign(frame.state, changes);
    frame.keepDraft();
    kind.draw();
    frame.say("");
  };
  // Acts for the mouse, and gives the keys back to the widget; a button pressed by key keeps the focus.
  frame.act = (act) => {
    const byKey = document.activeElement?.matches(":focus-visible") && root.contains(document.activeElement);
    act();
    if (!byKey) root.focus({ preventScroll: true });
  };
  frame.markDifferences = (on) => fillTexts((marked = on));
  frame.showRaw = (on) => fillTexts((raw = on));

  function fillTexts() {
    const { prompt, completions } = frame.item, rendered = raw ? [] : model.get("rendered");
    fillMessages(panels.prompt, prompt, rendered[0]);
    frame.texts.forEach((text, index) => fillMessages(text, completions[index], rendered[index + 1]));
    if (!marked || completions.length !== 2) return;
    const { left, right, exact } = wordDifferences(...frame.texts.map(wordsOf));
    [left, right].forEach((marks, index) => markWords(frame.texts[index], marks));
    if (!exact) frame.say("Long texts: only words that the other one does not contain are marked.");
    else if (!left.includes(true) && !right.includes(true)) frame.say("No word differs.");
  }

  function show(item) {
    const focused = root.contains(document.activeElement) ? document.activeElement : null;
    frame.item = item;
    frame.texts = [];
    const draft = item.item_id ? readDraft(frame) : {};
    frame.state = { ...kind.fresh(item), ...draft.state };
    panels.note.field.value = draft.note ?? item.earlier?.note ?? "";
    panels.note.node.hidden = !panels.note.field.value;
    panels.prompt.hidden = panels.question.hidden = !item.item_id;
    panels.body.replaceChildren(...(item.item_id ? kind.build(item) : [panels.over()]));
    fillTexts();
    if (item.item_id) kind.draw();
    shownAt = performance.now();
    if (focused && !root.contains(document.activeElement)) {
      const same = focused.dataset.action && root.querySelector(`[data-action="${focused.dataset.action}"]`);
      (same || root).focus({ preventScroll: true });
    }
  }

  function update() {
    const item = model.get("showing"), reply = model.get("reply"), moved = item.turn !== frame.item.turn;
    const mine = saver.replied(reply);
    if (mine || moved) frame.notice = reply.status === "failed" ? "" : reply.text;
    if (moved) {
      if (reply.status === "saved" || frame.item.earlier) writeDraft(frame, null);
      if (!mine) saver.forget();
      show(item);
    }
    panels.draw();
    if (mine && reply.status === "listed") panels.past.draw();
    root.dataset.itemId = item.item_id;
    root.dataset.version = model.get("version");
  }

  function onKey(event) {
    event.stopPropagation();
    const inField = event.target.matches("textarea, input"), command = event.ctrlKey || event.metaKey;
    if (command && event.key === "s") {
      event.preventDefault(); // the browser would save the page
      frame.say("Every judgement is saved when it is made; save the notebook from its own toolbar.");
    } else if (inField && !event.isComposing && leavesField(event)) {
      event.preventDefault();
      root.focus({ preventScroll: true });
    } else if (command && event.key === "Enter" && kind.save && frame.item.item_id) {
      event.preventDefault();
      kind.save();
    } else if (!inField && !command && !event.altKey && !event.repeat && !pressesButton(event)) {
      const used = (frame.item.item_id && kind.press(event.key)) || panels.press(event.key);
      if (used) event.preventDefault();
    }
  }
  const leavesField = ({ key, target, ctrlKey, metaKey }) =>
    key === "Escape" || (key === "Enter" && !ctrlKey && !metaKey && target.matches("input"));
  const pressesButton = ({ key, target }) => target.matches("button") && (key === "Enter" || key === " ");

  const kind = makeKind(frame);
  panels = makePanels(frame, saver, kind);
  root.setAttribute("aria-label", kind.question);
  root.addEventListener("keydown", onKey);
  // a button that hides itself leaves the keys to the widget, not to the notebook
  root.addEventListener("focusout", ({ target }) => target.checkVisibility() || root.focus({ preventScroll: true }));
  host.replaceChildren(root);
  show(frame.item);
  update();
  model.on("change:version", update);
  model.on("comm_live_update", saver.lose); // the kernel was restarted, or had been before the page was loaded:
  if (host.classList.contains("jupyter-widgets-disconnected")) saver.lose();
  const waiting = takeFocusOnce(model, root);
  return () => {
    waiting.disconnect();
    model.off("change:version", update);
    model.off("comm_live_update", saver.lose);
    if (kind.close) kind.close();
  };
}

export default { render };
