// Shows the text that a node of this pack returns: what a loader found, a doctor's report.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

/** @typedef {import("./page.js").LGraphNode} LGraphNode */

const LINE = 16;
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
  page.place(node, NAME, field, () => heightOf(field.textContent ?? ""));
  return field;
}

/** @param {string} text */
function heightOf(text) {
  const lines = text.split("\n").length;
  return LINE * Math.min(MOST_LINES, Math.max(lines, lines === 1 && text.length > 40 ? 2 : 1)) + 8;
}

/**
 * @param {LGraphNode} node
 * @param {unknown} given the text, or its pieces
 */
export function show(node, given) {
  const text = Array.isArray(given) ? given.join("\n") : String(given);
  const field = fieldOf(node);
  field.textContent = text;
  field.title = text;
  field.style.minHeight = `${heightOf(text)}px`;
  page.grow(node);
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
    page.after(node, "onExecuted", (/** @type {{text?: unknown}} */ output) => {
      if (output?.text) show(node, output.text);
    });
  },
});
