// Elements made in code. Text is always set as text, so that nothing a model wrote can run.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// A button with the key that does the same; `action` names it for tests and keeps the focus on it when it is redrawn.
function button(action, label, key, pressed) {
  const made = element("button", "wb-button", label);
  made.type = "button";
  made.dataset.action = action;
  if (key) {
    made.append(element("kbd", "wb-key", key));
    made.title = `${label} (${key})`;
    made.setAttribute("aria-label", `${label}, key ${key}`);
  }
  // the second half of a double click would answer an item that nobody has read
  made.addEventListener("click", (event) => event.detail < 2 && made.ariaDisabled !== "true" && pressed(event));
  return made;
}

// aria-disabled keeps the focus where it is, which `disabled` does not.
function setDisabled(made, disabled) {
  made.ariaDisabled = String(disabled);
}

// A button that shows and hides a panel, and says which of the two.
function toggle(frame, action, label, key, start, pressed) {
  let on = start;
  const flip = () => {
    on = !on;
    node.setAttribute("aria-pressed", String(on));
    pressed(on);
  };
  const node = button(action, label, key, () => frame.act(flip));
  node.setAttribute("aria-pressed", String(on));
  return { node, flip };
}

// Characters that are not seen, or turn the text after them round, are shown by name.
function visible(text) {
  const named = (each) => `⟨U+${each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return text.replace(/[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, named);
}

// The element of a node {tag, nodes, marker} of Markdown, or its text.
function built(node) {
  if (typeof node === "string") return document.createTextNode(visible(node));
  const made = element(node.tag);
  if (node.marker) made.style.listStyleType = JSON.stringify(`${node.marker} `); // "7." stays 7, and "+" no "-"
  for (const each of node.nodes) made.append(built(each));
  return made;
}

// Puts messages [{role, content}] into `parent`; those whose Markdown is in `rendered` as that, the others as they are.
function fillMessages(parent, messages, rendered = []) {
  parent.replaceChildren(
    ...messages.map(({ role, content }, index) => {
      const block = element("div", "wb-message");
      if (role) block.append(element("span", "wb-role", role));
      const text = element("div", rendered[index] ? "wb-text wb-rendered" : "wb-text");
      text.dir = "auto"; // right-to-left scripts read from the right
      for (const node of rendered[index] || [content]) text.append(built(node));
      if (!content.trim()) text.append(element("span", "wb-end", content ? "(only blanks)" : "(empty)"));
      block.append(text);
      return block;
    }),
  );
}

function textNodes(parent) {
  const walker = document.createTreeWalker(parent, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) if (walker.currentNode.parentElement.closest(".wb-text")) found.push(walker.currentNode);
  return found;
}

// Highlights the words in `parent` whose number is in `marks`.
function markWords(parent, marks) {
  let start = 0;
  for (const node of textNodes(parent)) {
    const made = document.createDocumentFragment();
    start = appendWords(made, node.data, marks, start);
    node.replaceWith(made);
  }
}

// Appends `content` in runs of marked and of plain words, and returns the number of its last word plus one. White
// space is marked between marked words only.
function appendWords(parent, content, marks, start) {
  let number = start, run = "", space = "", marked = false;
  const flush = () => {
    if (run) parent.append(marked ? element("mark", "wb-different", run) : run);
    run = "";
  };
  for (const piece of [...content.split(/(\s+)/), ""]) {
    if (/^\s+$/.test(piece)) {
      space = piece;
      continue;
    }
    const next = piece !== "" && marks[number] === true;
    if (next && !marked) run += space;
    if (next !== marked) flush();
    run += next && !marked ? piece : space + piece;
    marked = next;
    space = "";
    if (piece) number += 1;
  }
  flush();
  return number;
}

// A completion with its number: `head` takes the controls of a kind, the text scrolls inside.
function completionCard(frame, index) {
  const card = element("div", "wb-card"), head = element("div", "wb-head"), text = element("div", "wb-completion");
  card.dataset.index = index;
  text.tabIndex = 0; // so that long ones scroll by keys
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", `completion ${index + 1}`);
  head.append(element("span", "wb-number", String(index + 1)));
  card.append(head, text);
  frame.texts[index] = text;
  return { card, head };
}

function cardGrid(cards) {
  const grid = element("div", cards.length > 2 ? "wb-cards wb-many" : "wb-cards");
  grid.append(...cards);
  return grid;
}

// Index of the completion that the digit key names, or -1.
function digitIndex(key, count) {
  return /^[1-9]$/.test(key) && Number(key) <= count ? Number(key) - 1 : -1;
}
