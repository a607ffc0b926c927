// Nodes 2.0 mounts an element once for each number of a node. Undo, redo and a step into a subgraph
// make other nodes with the same numbers, and the page would go on showing the elements of those
// before.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

async function mend() {
  await page.drawn();
  for (const node of app.canvas.graph?.nodes ?? []) {
    for (const content of page.placedOn(node)) {
      const shown = document.querySelector(`[data-node-id="${node.id}"] .${content.className}`);
      if (shown !== content) shown?.replaceWith(content);
    }
  }
}

app.registerExtension({
  name: "ImagePrompt.Mounted",
  setup() {
    app.canvas.canvas.addEventListener("litegraph:set-graph", mend);
  },
  afterConfigureGraph() {
    mend(); // not waited for: a page in the background does not draw
  },
});
