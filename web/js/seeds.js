// The pack's seeds stay as they are until somebody changes them. ComfyUI draws a new one after every
// run, with which a training would begin anew each time.

import { app } from "../../../scripts/app.js";
import { isOurNode, widgetOf } from "./page.js";

app.registerExtension({
  name: "ImagePrompt.Seeds",
  // Before a file's own choice is put in.
  nodeCreated(node) {
    const control = isOurNode(node) && widgetOf(node, "control_after_generate");
    if (control) control.value = "fixed";
  },
});
