// What the drawn widgets share: elements, and their place on a node.

import { app } from "../../../scripts/app.js";

/** @typedef {import("@comfyorg/comfyui-frontend-types").ComfyExtension} ComfyExtension */
/** @typedef {Parameters<NonNullable<ComfyExtension["nodeCreated"]>>[0]} LGraphNode */
/** @typedef {NonNullable<LGraphNode["widgets"]>[number]} Widget */

const MARGIN = 8;
// Nodes 2.0 has components of its own for types such as "curve".
const PREFIX = "image_prompt_";
const SVG = "http://www.w3.org/2000/svg";
// The folder that this pack was put into, which is its name on the page.
export const FOLDER = decodeURIComponent(
  new URL(import.meta.url).pathname.split("/extensions/")[1] ?? "",
).split("/")[0];

/**
 * True for the nodes that this pack registered: another pack may own the same id.
 * @param {{python_module?: string}} nodeData
 */
export function isOurs(nodeData) {
  return nodeData.python_module === `custom_nodes.${FOLDER}`;
}

/**
 * Like `isOurs`, for a node in the graph.
 * @param {LGraphNode} node
 */
export function isOurNode(node) {
  const nodeData = /** @type {any} */ (node.constructor).nodeData;
  return Boolean(nodeData) && isOurs(nodeData);
}

/**
 * True for an error that passed through this pack's code, in whichever node: patches act in samplers.
 * @param {string[]} traceback
 */
export function isOurError(traceback) {
  return traceback.some((line) => line.split(/[\\/]/).includes(FOLDER));
}

/**
 * @param {string} tag
 * @param {Record<string, string>} [properties] of its style
 * @param {(Node | string)[]} [children]
 */
export function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) made.style.setProperty(name, value);
  made.append(...children);
  return made;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {(Node | string)[]} [children]
 */
export function shape(tag, attributes, children = []) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/**
 * Puts an element below a node's widgets. It is no input: neither saved nor sent.
 * @param {LGraphNode} node
 * @param {string} name
 * @param {HTMLElement} content
 * @param {() => number} height in pixels
 * @param {boolean} [grows] takes a share of the room that a larger node has
 */
export function place(node, name, content, height, grows = true) {
  // Nodes 2.0 goes by the style, the classic canvas by getMinHeight, which includes its margins.
  content.style.boxSizing = "border-box";
  content.style.width = "100%";
  content.style.minHeight = `${height()}px`;
  // The published types leave addDOMWidget out.
  const widget = /** @type {any} */ (node).addDOMWidget(name, PREFIX + name, content, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: () => height() + 2 * MARGIN,
    ...(grows ? {} : { getMaxHeight: () => height() + 2 * MARGIN }),
  });
  widget.serialize = false;
  content.dataset.imagePrompt = name;
  grow(node);
  drawn().then(() => mount(node));
  return widget;
}

/**
 * Sees to it that Nodes 2.0 shows the elements that were placed on a node, and no others of this
 * pack. It mounts an element once for each number of a node: where undo or redo put another node under
 * that number, it goes on showing the element of the one before. And on 1.32.9 a node that was just
 * connected takes no further widgets.
 * @param {LGraphNode} node
 */
export function mount(node) {
  const { graph } = app.canvas;
  // Copies on their way to the clipboard, and nodes inside closed subgraphs, bear others' numbers.
  if (/** @type {any} */ (graph)?.getNodeById(node.id) !== node) return;
  const ours = (node.widgets ?? []).filter((widget) => `${widget.type}`.startsWith(PREFIX));
  const box = document.querySelector(`[data-node-id="${node.id}"]`);
  const place = box?.querySelector(".lg-node-widgets");
  for (const widget of ours) {
    const content = /** @type {{element?: any}} */ (widget).element;
    const shown = box?.querySelector(`[data-image-prompt="${widget.name}"]`);
    if (shown && shown !== content) shown.replaceWith(content);
    else if (!shown && place) {
      Object.assign(content.style, { gridColumn: "1 / -1", margin: "0 0 0 12px", width: "auto" });
      place.append(content);
    }
  }
  const names = ours.map((widget) => widget.name);
  box?.querySelectorAll("[data-image-prompt]").forEach((shown) => {
    if (!names.includes(/** @type {any} */ (shown).dataset.imagePrompt)) shown.remove();
  });
}

/**
 * Takes away what `place` put there.
 * @param {LGraphNode} node
 * @param {string} name
 */
export function takeAway(node, name) {
  const widget = widgetOf(node, name);
  if (widget) node.removeWidget(widget);
  mount(node);
  node.graph?.setDirtyCanvas(true, true);
}

/**
 * Makes a node large enough for its widgets.
 * @param {LGraphNode} node
 */
export function grow(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas(true, true);
}

/**
 * @param {LGraphNode} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/**
 * Sets a widget as if the user had typed, so that everything that shows it follows.
 * @param {Widget} widget
 * @param {string} value
 */
export function setValue(widget, value) {
  widget.value = value;
  widget.callback?.(value);
}

/**
 * Calls back whenever one of these widgets may have a new value, and when a workflow is loaded.
 * @param {LGraphNode} node
 * @param {string[]} names
 * @param {() => void} changed
 */
export function onChange(node, names, changed) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const before = widget.callback;
    widget.callback = function (/** @type {any} */ ...given) {
      const result = before?.apply(this, given);
      changed();
      return result;
    };
  }
  after(node, "onConfigure", changed);
  after(node, "onDrawForeground", changed);
}

/**
 * Runs something after a method of one node.
 * @param {LGraphNode} node
 * @param {"onConfigure" | "onDrawForeground" | "onExecuted" | "onConnectionsChange"} name
 * @param {(...given: any[]) => void} then
 */
export function after(node, name, then) {
  const method = /** @type {any} */ (node)[name];
  /** @type {any} */ (node)[name] = function (/** @type {any[]} */ ...given) {
    const result = method?.apply(this, given);
    then(...given);
    return result;
  };
}

/**
 * Draws once now and again whenever the element changes size.
 * @param {Element} drawing
 * @param {() => void} draw
 */
export function drawOnResize(drawing, draw) {
  new ResizeObserver(() => draw()).observe(drawing);
}

export const COLOURS = {
  text: "var(--input-text, #ddd)",
  quiet: "var(--descrip-text, #999)",
  back: "var(--comfy-input-bg, #222)",
  line: "var(--border-color, #4e4e4e)",
  first: "#5b9bd5",
  second: "#e0a030",
  third: "#8a8f98",
  wrong: "var(--error-text, #ff6b6b)",
};

/** Waits until the page has drawn what was changed. */
export async function drawn() {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}
