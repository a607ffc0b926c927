// A message at the side of the page, with a button.

import { app } from "../../../scripts/app.js";
import * as page from "./page.js";

const TRIES = 30;

/**
 * Shows a message; returns what takes it away.
 * @param {string} title
 * @param {string} text
 * @param {{label: string, press: () => void}} button
 * @returns {() => void}
 */
export function notify(title, text, button) {
  const toast = /** @type {any} */ (app.extensionManager.toast);
  if (toast.warning) {
    const action = { label: button.label, onClick: button.press };
    const shown = toast.warning(title, { description: text, action });
    return () => toast.dismiss(shown);
  }
  // Pages before 1.50 or so have messages without buttons, and take them away by the object.
  const shown = { severity: "warn", summary: title, detail: text };
  toast.add(shown);
  addButton(title, button);
  return () => toast.remove(shown);
}

/**
 * Puts a button into the message on the page, once it is there.
 * @param {string} title
 * @param {{label: string, press: () => void}} button
 */
async function addButton(title, { label, press }) {
  const made = page.element("button", LOOK, [label]);
  made.addEventListener("click", press);
  for (let tries = 0; tries < TRIES && !made.isConnected; tries += 1) {
    await page.drawn();
    const shown = [...document.querySelectorAll(".p-toast-message-text")];
    shown.find((one) => one.textContent?.includes(title))?.append(made);
  }
}

const LOOK = {
  "align-self": "flex-end", padding: "4px 10px", cursor: "pointer", color: page.COLOURS.text,
  background: page.COLOURS.back, border: `1px solid ${page.COLOURS.line}`, "border-radius": "4px",
};
