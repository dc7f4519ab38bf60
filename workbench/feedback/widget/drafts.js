// Answers under way live in the tab, so that a reload or a dead kernel does not take them along.
function draftKey({ model, item }) {
  const size = JSON.stringify(item.completions).length;
  return JSON.stringify(["workbench", model.get("labeler"), model.get("kind"), item.item_id, size]);
}

function readDraft(frame) {
  try {
    return JSON.parse(sessionStorage.getItem(draftKey(frame))) || {};
  } catch {
    return {}; // no storage here, or not ours
  }
}

function writeDraft(frame, draft) {
  try {
    if (draft) sessionStorage.setItem(draftKey(frame), JSON.stringify(draft));
    else sessionStorage.removeItem(draftKey(frame));
  } catch {
    // no storage here, or full: the answer still is on the screen
  }
}
