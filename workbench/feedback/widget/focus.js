// A cell that was just run gives the keys to its widget, unless somebody types or another place of the page has them.

function takeFocusOnce(model, root) {
  const attached = new ResizeObserver(() => {
    attached.disconnect();
    const held = document.activeElement ?? document.body, notebook = root.closest(".jp-Notebook");
    const taken = held.closest("input, textarea, select, [contenteditable=true], .wb-annotate");
    if (!taken && (held === document.body || !notebook || notebook.contains(held))) root.focus();
  });
  if (model.get("fresh")) {
    attached.observe(root);
    model.set("fresh", false); // a page that is loaded again leaves the focus where it is
    model.save_changes();
  }
  return attached;
}
