// What surrounds the completions: progress, instructions, prompt, note, status and the list of keys.

const COMMON_KEYS = [["s", "skip"], ["u", "undo"], ["n", "note"], ["i", "instructions"],
                     ["m", "raw text"], ["p", "past judgements"], ["?", "keys"]];

function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds / 10)) * 10} s left`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min left` : `about ${(seconds / 3600).toFixed(1)} h left`;
}

function makeProgress(model) {
  const node = element("div", "wb-progress"), bar = element("div", "wb-bar"), filled = element("div", "wb-filled");
  const count = element("span", "wb-count"), time = element("span", "wb-time"), agreement = element("span", "wb-agreement");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", "items judged");
  bar.setAttribute("aria-valuemin", "0");
  bar.append(filled);
  node.append(bar, count, time, agreement);
  const draw = () => {
    const { done, total, seconds_left, agreement: sentence } = model.get("progress");
    bar.setAttribute("aria-valuenow", done);
    bar.setAttribute("aria-valuemax", total);
    filled.style.width = `${total ? Math.min(100, (100 * done) / total) : 0}%`;
    count.textContent = `${done} of ${total} judged by ${model.get("labeler")}`;
    count.title = model.get("labeler");
    time.textContent = timeLeft(seconds_left);
    agreement.textContent = sentence;
  };
  return { node, draw };
}

function makeKeys(keys) {
  const node = element("div", "wb-keys");
  for (const [key, what] of keys) {
    const entry = element("span", "wb-keyed");
    entry.append(...key.split(" ").flatMap((each) => [element("kbd", "wb-key", each), " "]), what);
    node.append(entry);
  }
  return node;
}

function makeNote(frame) {
  const node = element("label", "wb-note", "Note ");
  const field = element("input");
  field.type = "text";
  field.dir = "auto";
  field.setAttribute("aria-label", "note, Enter or Escape leaves the field");
  field.addEventListener("input", () => frame.keepDraft());
  node.append(field);
  node.hidden = true;
  const open = () => {
    node.hidden = false;
    field.focus();
  };
  return { node, field, open };
}

function makeStatus(frame, saver) {
  const node = element("div", "wb-status"), text = element("span", "wb-status-text");
  node.setAttribute("role", "status");
  node.setAttribute("aria-live", "polite");
  const retry = button("retry", "Retry", "r", () => frame.act(saver.retry));
  node.append(text, retry);
  const draw = () => {
    const failed = saver.state === "failed", item = frame.item;
    const state = { failed: `${saver.problem} `, saving: "Saving …", ready: "" }[saver.state];
    text.textContent = (state + frame.notice).trim();
    retry.hidden = !failed || saver.lost;
    node.classList.toggle("wb-problem", failed || frame.notice.startsWith("NOT SAVED"));
    frame.root.dataset.state = saver.state === "ready" && !item.item_id ? "done" : saver.state;
  };
  return { node, draw };
}

// What is shown in the place of an item when there is none.
function makeOver(frame) {
  const node = element("div", "wb-over", frame.model.get("progress").message);
  node.append(button("look", "Look again", "l", () => frame.act(frame.look)));
  return node;
}

// {note, prompt, question, body, past, press, draw, drawStatus, over}: `press` is true where it used the key.
function makePanels(frame, saver, kind) {
  const { model, root } = frame;
  const keys = makeKeys([...kind.keys, ...COMMON_KEYS]), note = makeNote(frame), progress = makeProgress(model);
  const status = makeStatus(frame, saver);
  const instructions = element("div", "wb-instructions", model.get("instructions"));
  instructions.dir = "auto";
  instructions.hidden = !model.get("instructions");
  const prompt = element("div", "wb-prompt"), body = element("div", "wb-body"), actions = element("div", "wb-actions");
  prompt.tabIndex = 0;
  prompt.setAttribute("role", "region");
  prompt.setAttribute("aria-label", "prompt");
  const guided = !instructions.hidden;
  const guide = toggle(frame, "instructions", "Instructions", "i", guided, (on) => (instructions.hidden = !on));
  guide.node.hidden = !guided;
  const marks = toggle(frame, "differences", "Differences", "d", false, frame.markDifferences);
  const raw = toggle(frame, "raw", "Raw text", "m", false, frame.showRaw);
  const past = makePast(frame, kind, () => list.flip());
  const list = toggle(frame, "past", "Past judgements", "p", false, past.open);
  const help = toggle(frame, "keys", "Keys", "?", true, (on) => (keys.hidden = !on));
  const tools = element("div", "wb-tools"), top = element("div", "wb-top");
  tools.append(guide.node, marks.node, raw.node, list.node, help.node);
  top.append(progress.node, tools);
  const own = {
    s: button("skip", "Skip", "s", () => frame.act(frame.skip)),
    u: button("undo", "Undo", "u", () => frame.act(frame.undo)),
    n: button("note", "Note", "n", note.open),
    Escape: button("leave", "Leave it as it was", "Esc", () => frame.act(frame.leave)),
  };
  actions.append(...kind.actions, element("span", "wb-gap"), ...Object.values(own));
  const question = element("div", "wb-question"), asked = element("span", "wb-asked");
  question.append(asked, element("span", "wb-hint", "Click here first: the keys are the notebook's now."));
  root.append(top, past.node, instructions, prompt, question, body, note.node, actions);
  root.append(status.node, keys);
  const doing = { s: frame.skip, u: frame.undo, n: note.open, r: saver.retry, "?": help.flip };
  const press = (key) => {
    const now = {
      i: guide.node.hidden ? null : guide.flip,
      d: marks.node.hidden ? null : marks.flip,
      m: raw.node.hidden ? null : raw.flip,
      p: list.flip,
      l: frame.item.item_id ? null : frame.look,
      Escape: past.node.hidden ? frame.item.earlier && frame.leave : list.flip,
    };
    const act = { ...doing, ...now }[key];
    if (act) act();
    return Boolean(act);
  };
  const draw = () => {
    progress.draw();
    marks.node.hidden = frame.item.completions.length !== 2;
    for (const each of actions.querySelectorAll("button")) setDisabled(each, !frame.item.item_id);
    setDisabled(own.u, !model.get("progress").can_undo);
    const { earlier } = frame.item;
    raw.node.hidden = !model.get("rendered").flat().some(Boolean);
    own.Escape.hidden = !earlier;
    asked.textContent = earlier ? `${kind.question} You said: ${saidBefore(kind, earlier)}.` : kind.question;
    status.draw();
  };
  return { note, prompt, question, body, past, press, draw, drawStatus: status.draw, over: () => makeOver(frame) };
}
