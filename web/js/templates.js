// The pack's templates in the order of their numbers: the server lists files as the disk happens to.

import { app } from "../../../scripts/app.js";
import { FOLDER } from "./page.js";

app.registerExtension({
  name: "ImagePrompt.Templates",
  init() {
    const { api } = app;
    const listed = api.getWorkflowTemplates.bind(api);
    api.getWorkflowTemplates = async () => {
      const all = await listed();
      all[FOLDER]?.sort();
      return all;
    };
  },
});
