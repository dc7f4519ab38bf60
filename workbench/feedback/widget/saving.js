// An answer on its way: nothing counts as saved before the kernel has said so.

const ANSWER_WITHIN_MS = 5000;
const KEPT = "Your answer is kept here: retry when the kernel is idle again; if it was restarted, run this cell again.";
const NO_ANSWER = `NOT SAVED: the kernel did not answer within ${ANSWER_WITHIN_MS / 1000} s. ${KEPT}`;
const LOST = "The kernel was restarted and does not know this widget any more: run this cell again to go on.";

// randomUUID exists on localhost and https only
function newEventId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// {send, retry, replied, forget, lose, lost, state, problem}: `changed` is called whenever state ("ready", "saving" or
// "failed") or problem has changed.
function makeSaver(model, changed) {
  let last = null; // the last message, until it is saved or given up
  let timer = 0;
  const saver = { state: "ready", problem: "", lost: false };

  function enter(state, problem = "") {
    clearTimeout(timer);
    saver.state = state;
    saver.problem = problem;
    changed();
  }

  function deliver() {
    if (saver.lost) return enter("failed", `NOT SAVED. ${LOST}`);
    enter("saving");
    timer = setTimeout(() => enter("failed", NO_ANSWER), ANSWER_WITHIN_MS);
    try {
      model.send(last);
    } catch (error) {
      enter("failed", `NOT SAVED: the kernel can not be reached (${error.message}). ${KEPT}`);
    }
  }

  // The same answer sent again keeps its event id, so that it can not be stored twice.
  saver.send = (message) => {
    if (saver.state === "saving") return;
    const same = last && ["type", "turn", "action", "answer", "note", "of"].every((name) => {
      return JSON.stringify(last[name]) === JSON.stringify(message[name]);
    });
    if (!same) last = { ...message, event_id: newEventId() };
    deliver();
  };

  saver.retry = () => saver.state === "failed" && last && deliver();

  saver.lose = () => {
    const unsaved = saver.state !== "ready";
    saver.lost = true;
    enter("failed", unsaved ? `NOT SAVED. ${LOST}` : LOST);
  };

  // True where the reply is to the last message that this view sent; other views of the widget hear it too.
  saver.replied = (reply) => {
    if (!last || reply.event_id !== last.event_id) return false;
    if (reply.status === "failed") {
      enter("failed", reply.text);
    } else {
      last = null;
      enter("ready");
    }
    return true;
  };

  // Another item is shown: what was not saved for the one before can not be sent any more.
  saver.forget = () => {
    last = null;
    enter("ready");
  };
  return saver;
}
