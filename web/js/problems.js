// Says in the user's language what an error of this pack means. The server's text is English and
// ends with a code; the page shows that text by itself.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

/** @typedef {Parameters<typeof app.extensionManager.toast.add>[0]} Message */

/** @type {Message | undefined} */
let shown;

/**
 * What a code means in the page's language; nothing in English.
 * @param {string} code
 * @returns {Promise<string | undefined>}
 */
async function meaningOf(code) {
  const locale = app.extensionManager.setting.get("Comfy.Locale");
  if (locale === "en") return undefined;
  // Asked of the server: the page may replace its merged texts by its own when it starts.
  const translations = await app.api.getCustomNodesI18n();
  return translations[locale]?.imagePromptProblems?.[code];
}

function clear() {
  if (shown) app.extensionManager.toast.remove(shown);
  shown = undefined;
}

/** @param {{exception_message: string, traceback: string[]}} error */
async function explain(error) {
  const code = /\[([a-z-]+)\]\s*$/.exec(error.exception_message)?.[1];
  if (!code || !page.isOurError(error.traceback)) return;
  const detail = await meaningOf(code);
  if (!detail) return;
  clear();
  shown = { severity: "warn", summary: `IPAdapter [${code}]`, detail };
  app.extensionManager.toast.add(shown);
}

app.registerExtension({
  name: "ImagePrompt.Problems",
  setup() {
    app.api.addEventListener("execution_error", ({ detail }) => explain(detail));
    app.api.addEventListener("execution_start", clear);
  },
});
