// Puts the pack's elements back onto their nodes wherever the page may show those of other nodes.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

async function mend() {
  await page.drawn();
  app.canvas.graph?.nodes.forEach((node) => page.mount(/** @type {any} */ (node)));
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
