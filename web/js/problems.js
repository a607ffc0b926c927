// Says in the user's language what an error of this pack means: in a message beside the page's own
// report, and in red on the node. The server's text is English and ends with a code.

import { app } from "../../../scripts/app.js";
import { notify } from "./notice.js";
import * as page from "./page.js";
import { hide, show } from "./result_text.js";
import { dependents, nodesOf, reached } from "./wires.js";

/** @typedef {import("./page.js").LGraphNode} LGraphNode */
/** @typedef {{exception_message: string, traceback: string[], node_id: string | number}} Failure */

const HELP = "Help";
const INFO_BUTTON = "[data-testid=info-button]";
const PREVIEW = "$$canvas-image-preview";

/** @type {(() => void)[]} what takes away that which is shown of the last error */
let shown = [];

/** What this pack says in the page's language; nothing where that is English. */
async function translation() {
  const locale = app.extensionManager.setting.get("Comfy.Locale");
  if (locale === "en") return undefined;
  // Asked of the server: the page may replace its merged texts by its own when it starts.
  return (await app.api.getCustomNodesI18n())[locale];
}

function clear() {
  for (const takeAway of shown) takeAway();
  shown = [];
}

/** @param {Failure} error */
async function explain(error) {
  const [, message, code] = /^(.*?)\s*\[([a-z-]+)\]\s*$/s.exec(error.exception_message) ?? [];
  if (!code || !page.isOurError(error.traceback)) return;
  const texts = await translation();
  const meaning = texts?.imagePromptProblems?.[code];
  const sentence = meaning ? `${meaning}\n${message}` : message;
  const graph = /** @type {any} */ (app.graph);
  const node = /** @type {LGraphNode | undefined} */ (nodesOf(graph, String(error.node_id)).at(-1));
  clear();
  clearPictures(String(error.node_id));
  if (node) mark(node, sentence);
  const label = texts?.imagePromptPage?.help ?? HELP;
  shown.push(notify(`IPAdapter [${code}]`, sentence, { label, press: () => help(node) }));
}

/**
 * @param {LGraphNode} node
 * @param {string} sentence
 */
function mark(node, sentence) {
  show(node, sentence, true);
  shown.push(() => hide(node));
}

/**
 * Takes the pictures of the run before from all that waited for the failed node: they would pass for
 * the result.
 * @param {string} failed its execution id
 */
function clearPictures(failed) {
  for (const [id, node] of dependents(/** @type {any} */ (app.graph), failed)) {
    const kept = /** @type {any} */ (node);
    if (!hasPicture(kept)) continue;
    const preview = page.widgetOf(kept, PREVIEW);
    // As a run that shows nothing: what else shows results on a node goes by this event, too.
    const nothing = { node: id, display_node: id, output: {}, prompt_id: "" };
    app.api.dispatchCustomEvent("executed", /** @type {any} */ (nothing));
    Object.assign(kept, { imgs: undefined, images: undefined, imageIndex: null });
    if (preview) kept.removeWidget(preview);
    kept.graph?.setDirtyCanvas(true, true);
  }
}

/** @param {any} node */
function hasPicture(node) {
  const outputs = /** @type {Record<string, any>} */ (app.nodeOutputs);
  const names = [`${node.id}`, `${node.graph?.id}:${node.id}`]; // the second in subgraphs
  return node.imgs?.length || names.some((name) => outputs[name]?.images?.length);
}

/**
 * Opens the page's own help for the node, or for the nearest node of this pack before it.
 * @param {LGraphNode | undefined} failed
 */
async function help(failed) {
  const before = failed ? reached(/** @type {any} */ (failed), "before") : [];
  const node = before.map((one) => /** @type {any} */ (one)).find(page.isOurNode);
  if (!node) return;
  // Pages that report errors in a dialog: the help would open behind it.
  /** @type {HTMLElement | null} */ (document.querySelector(".p-dialog-close-button"))?.click();
  if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
  app.canvas.deselectAll();
  app.canvas.selectNode(node);
  await page.drawn();
  await page.drawn();
  /** @type {HTMLElement | null} */ (document.querySelector(INFO_BUTTON))?.click();
}

app.registerExtension({
  name: "ImagePrompt.Problems",
  setup() {
    app.api.addEventListener("execution_error", ({ detail }) => explain(detail));
    app.api.addEventListener("execution_start", clear);
  },
});
