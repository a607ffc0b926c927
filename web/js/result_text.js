// Shows the text that a node of this pack returns: what a loader found, a doctor's report, what an
// image encoder sees. The pictures beside such a text are drawn by the page itself.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

/** @typedef {import("./page.js").LGraphNode} LGraphNode */

const LINE = 16;
const LETTER = 5.6;
const BESIDE = 36; // pixels of a node's width that the text cannot have
const WIDE = /[\u2e80-\uffff]/g; // Chinese and Japanese letters are twice as wide
const MOST_LINES = 16;
const NAME = "result_text";

/**
 * The field below a node's widgets, made when there is something to show.
 * @param {LGraphNode} node
 * @returns {HTMLElement}
 */
function fieldOf(node) {
  const made = /** @type {{element?: HTMLElement} | undefined} */ (page.widgetOf(node, NAME));
  if (made?.element) return made.element;
  const field = page.element("div", LOOK);
  field.className = "image-prompt-text";
  // The wheel scrolls a long text instead of zooming the graph.
  field.addEventListener("wheel", (event) => {
    if (field.scrollHeight > field.clientHeight) event.stopPropagation();
  });
  page.place(node, NAME, field, () => heightOf(field.textContent ?? "", node), false);
  return field;
}

/**
 * @param {string} text
 * @param {LGraphNode} node
 */
function heightOf(text, node) {
  const letters = Math.max(16, Math.floor((node.size[0] - BESIDE) / LETTER));
  const lines = text.replace(WIDE, "xx").split("\n");
  const rows = lines.map((line) => Math.max(1, Math.ceil(line.length / letters)));
  return LINE * Math.min(MOST_LINES, rows.reduce((sum, count) => sum + count, 0)) + 8;
}

/**
 * @param {LGraphNode} node
 * @param {unknown} given the text, or its pieces
 * @param {boolean} [wrong] it says what is wrong
 */
export function show(node, given, wrong = false) {
  const text = Array.isArray(given) ? given.join("\n") : String(given);
  const field = fieldOf(node);
  field.textContent = text;
  field.style.color = wrong ? page.COLOURS.wrong : page.COLOURS.text;
  field.title = text;
  field.style.minHeight = `${heightOf(text, node)}px`;
  page.grow(node);
}

/**
 * Takes the text away, and the room that was made for it.
 * @param {LGraphNode} node
 */
export function hide(node) {
  const needed = node.computeSize()[1];
  const own = node.size[1] === needed;
  page.takeAway(node, NAME);
  if (own) node.setSize([node.size[0], node.computeSize()[1]]);
}

const LOOK = {
  "font-size": "11px", "line-height": `${LINE}px`, padding: "4px 6px", "white-space": "pre-wrap",
  "overflow-wrap": "anywhere", overflow: "auto", "user-select": "text", cursor: "text",
  color: page.COLOURS.text, background: page.COLOURS.back, "border-radius": "4px",
};

app.registerExtension({
  name: "ImagePrompt.ResultText",
  nodeCreated(node) {
    if (!page.isOurNode(node)) return;
    let grown = true;
    page.after(node, "onExecuted", (/** @type {{text?: unknown, images?: unknown}} */ output) => {
      if (output?.text) show(node, output.text);
      grown = !output?.images;
    });
    // The classic canvas makes room for pictures once they have loaded, not counting the text.
    page.after(node, "onDrawForeground", () => {
      const { imgs } = /** @type {any} */ (node); // the published types leave it out
      if (grown || !imgs?.length) return;
      grown = true;
      page.grow(node);
    });
  },
});
