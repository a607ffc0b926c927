// The preview on IPAdapter Weights: the weight of every frame as a line.

import { app } from "../../../scripts/app.js";
import { curve, parseWeights, polyline, schedule } from "./curves.js";
import * as page from "./page.js";

/** @typedef {import("./page.js").LGraphNode} LGraphNode */

const HEIGHT = 110;
// How many pictures come is known at run time only: the preview shows this many.
const PICTURES = 3;
const NUMBERS = ["frames", "start_frame", "end_frame", "add_starting_frames", "add_ending_frames"];
const WIDGETS = ["weights", "timing", "method", ...NUMBERS];

const STATUS = { "font-size": "11px", "min-height": "15px", color: page.COLOURS.quiet };

class CurvePreview {
  /** @param {LGraphNode} node */
  constructor(node) {
    this.node = node;
    this.shown = "";
    this.drawing = page.shape("svg", { "aria-label": "Weight of every frame" });
    this.status = page.element("div", STATUS);
    this.root = page.element(
      "div", { display: "flex", "flex-direction": "column", height: "100%" },
      [this.drawing, this.status],
    );
    this.root.className = "image-prompt-curve";
    Object.assign(this.drawing.style, {
      flex: "1 1 0", minHeight: "60px", width: "100%", borderRadius: "4px",
      background: page.COLOURS.back,
    });
    page.drawOnResize(this.drawing, () => this.draw());
  }

  get pictures() {
    const input = this.node.inputs?.find((slot) => slot.name === "image");
    return input?.link == null ? 0 : PICTURES;
  }

  /** @returns {import("./curves.js").Settings | null} */
  get settings() {
    /** @param {string} name */
    const value = (name) => page.widgetOf(this.node, name)?.value;
    const weights = parseWeights(String(value("weights") ?? ""));
    if (!weights) return null;
    const numbers = Object.fromEntries(NUMBERS.map((name) => [name, Number(value(name) ?? 0)]));
    return /** @type {import("./curves.js").Settings} */ ({
      ...numbers, weights, timing: String(value("timing")), method: String(value("method")),
    });
  }

  /** Draws if the settings are not those shown. */
  follow() {
    if (this.state() !== this.shown) this.draw();
  }

  state() {
    return JSON.stringify([this.settings, this.pictures]);
  }

  draw() {
    this.shown = this.state();
    const settings = this.settings;
    const values = settings ? schedule(settings, this.pictures) : [];
    this.status.textContent = this.describe(settings, values);
    const { clientWidth: width, clientHeight: height } = this.drawing;
    if (width <= 0 || height <= 0) return;
    const low = Math.min(0, ...values);
    const frame = { width, height: height - 8, low, high: Math.max(1, ...values) };
    const random = settings?.timing === "random" ? "4 3" : "none";
    this.drawing.replaceChildren(
      page.shape("g", { transform: "translate(0 4)" }, [
        this.line(values.map((value) => 1 - value), frame, page.COLOURS.second, "2 3"),
        this.line(values, frame, page.COLOURS.first, random),
      ]),
    );
  }

  /**
   * @param {number[]} values
   * @param {{width: number, height: number, low: number, high: number}} frame
   * @param {string} stroke
   * @param {string} dashes
   */
  line(values, frame, stroke, dashes) {
    return page.shape("polyline", {
      points: values.length ? polyline(values, frame) : "", fill: "none", stroke,
      "stroke-width": 1.5, "stroke-dasharray": dashes,
    });
  }

  /**
   * @param {import("./curves.js").Settings | null} settings
   * @param {number[]} values
   */
  describe(settings, values) {
    if (!settings) return "weights: expected numbers such as 1.0, 0.5";
    if (!values.length) return "custom timing needs at least one weight";
    const each = curve(settings).length;
    const random = settings.timing === "random" ? ", between these at random" : "";
    if (!this.pictures) return `${values.length} frames${random}`;
    const per = settings.method === "full batch" ? "per picture" : "from picture to picture";
    return `${each} frames ${per}${random}; shown: ${PICTURES} pictures`;
  }
}

app.registerExtension({
  name: "ImagePrompt.CurvePreview",
  nodeCreated(node) {
    if (node.comfyClass !== "IPAdapterWeights" || !page.isOurNode(node)) return;
    const preview = new CurvePreview(node);
    page.place(node, "curve", preview.root, () => HEIGHT);
    page.onChange(node, WIDGETS, () => preview.follow());
    page.after(node, "onConnectionsChange", () => preview.follow());
  },
});
