// Colours for the pack's own kinds of wires, which the page draws grey otherwise.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

/** @type {Record<string, string>} */
const COLOURS = {
  IPADAPTER: "#e08a3c",
  EMBEDS: "#d9bf5a",
  INSIGHTFACE: "#b07ad6",
  IPADAPTER_PARAMS: "#5fb3a1",
  WEIGHTS_STRATEGY: "#6fa3d8",
  IPADAPTER_ATTENTION: "#d66f7f",
};

function paint() {
  const canvas = /** @type {any} */ (app.canvas);
  const links = /** @type {any} */ (canvas.constructor).link_type_colors;
  const root = document.documentElement.style;
  for (const [kind, colour] of Object.entries(COLOURS)) {
    // A palette's own choice, or another pack's, stays.
    canvas.default_connection_color_byType[kind] ||= colour;
    links[kind] ||= colour;
    const name = `--color-datatype-${kind}`; // Nodes 2.0
    if (!root.getPropertyValue(name)) root.setProperty(name, colour);
  }
}

app.registerExtension({
  name: "ImagePrompt.Colours",
  // Not in setup: the page loads its palette after that, and with it clears what it does not know.
  nodeCreated(node) {
    if (page.isOurNode(node)) paint();
  },
});
