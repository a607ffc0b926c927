// The layer editor of IPAdapter Mad Scientist: a bar per layer over the text of layer_weights.

import { app } from "../../../scripts/app.js";
import { barAt, barBox, rangeOf, snap, valueAt, yOf } from "./bars.js";
import {
  LAYOUTS,
  PRESETS,
  barsOf,
  countOf,
  presetText,
  roleOf,
  sideOf,
  withWeight,
} from "./layers.js";
import * as page from "./page.js";

/** @typedef {import("./page.js").LGraphNode} LGraphNode */

const HEIGHT = 190;
const LABELS = 26;
const PROPERTY = "layers_of";
const FINE = 0.01;
const KEYS = { ArrowUp: 0.05, ArrowDown: -0.05, PageUp: 0.5, PageDown: -0.5 };
const { first, second, third, quiet } = page.COLOURS;
const ROLES = { style: first, composition: second, "": third };
const LEGEND = "Blue: style. Orange: composition.";

class LayerEditor {
  /**
   * @param {LGraphNode} node
   * @param {import("./page.js").Widget} text
   */
  constructor(node, text) {
    this.node = node;
    this.text = text;
    this.shown = "";
    this.selected = -1;
    this.painted = -1;
    /** @type {import("./bars.js").Range | null} the range while dragging */
    this.range = null;
    this.base = this.menu(Object.keys(LAYOUTS), "Layers of");
    this.presets = this.menu(["preset", ...PRESETS], "Fills in all layers");
    this.clear = page.element("button", BUTTON, ["clear"]);
    this.clear.title = "Empty: weight_type decides";
    this.drawing = page.shape("svg", { tabindex: 0, "aria-label": "Strength of each layer" });
    this.status = page.element("div", STATUS);
    this.root = page.element("div", ROOT, [
      page.element("div", { display: "flex", gap: "4px" }, [this.base, this.presets, this.clear]),
      this.drawing,
      this.status,
    ]);
    this.root.className = "image-prompt-layers";
    Object.assign(this.drawing.style, DRAWING);
    this.listen();
  }

  get layout() {
    return LAYOUTS[String(this.node.properties[PROPERTY])] ?? LAYOUTS.SDXL;
  }

  get weightType() {
    return String(page.widgetOf(this.node, "weight_type")?.value ?? "linear");
  }

  get bars() {
    return barsOf(String(this.text.value ?? ""), this.weightType, this.layout);
  }

  get size() {
    return { width: this.drawing.clientWidth, height: this.drawing.clientHeight - LABELS };
  }

  /**
   * @param {string[]} choices
   * @param {string} title
   */
  menu(choices, title) {
    const options = choices.map((choice) => page.element("option", {}, [choice]));
    const select = /** @type {HTMLSelectElement} */ (page.element("select", BUTTON, options));
    select.title = title;
    return select;
  }

  listen() {
    this.base.addEventListener("change", () => {
      this.node.properties[PROPERTY] = this.base.value;
      this.draw();
    });
    this.presets.addEventListener("change", () => {
      if (this.presets.selectedIndex > 0) this.write(presetText(this.presets.value, this.layout));
      this.presets.selectedIndex = 0;
    });
    this.clear.addEventListener("click", () => this.write(""));
    this.drawing.addEventListener("pointerdown", (event) => this.press(event));
    this.drawing.addEventListener("pointermove", (event) => this.move(event));
    this.drawing.addEventListener("pointerup", () => this.release());
    this.drawing.addEventListener("pointercancel", () => this.release());
    this.drawing.addEventListener("pointerleave", () => this.select(-1));
    this.drawing.addEventListener("contextmenu", (event) => event.preventDefault());
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    page.drawOnResize(this.drawing, () => this.draw());
  }

  /** @param {PointerEvent} event */
  press(event) {
    event.stopPropagation();
    if (this.bars.errors.length) return;
    this.drawing.focus({ preventScroll: true });
    this.drawing.setPointerCapture(event.pointerId);
    if (event.button === 2) {
      this.set(this.spot(event).index, 0);
    } else {
      this.range = rangeOf(this.bars.values);
      this.painted = this.spot(event).index;
      this.move(event);
    }
  }

  /** @param {PointerEvent} event */
  move(event) {
    const { index, y } = this.spot(event);
    this.select(index);
    if (!this.range) return;
    event.stopPropagation();
    const weight = valueAt(y, this.range, this.size.height);
    // A fast mouse skips bars: those on its way get the same.
    const step = Math.sign(index - this.painted);
    while (this.painted !== index) {
      this.painted += step;
      if (this.painted !== index) this.set(this.painted, weight);
    }
    this.set(index, weight);
  }

  release() {
    this.range = null;
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const step = /** @type {Record<string, number>} */ (KEYS)[event.key];
    const count = countOf(this.layout);
    if (turn) {
      this.select((this.selected + turn + count) % count);
    } else if (step && this.selected >= 0) {
      const change = event.shiftKey ? Math.sign(step) * FINE : step;
      this.set(this.selected, snap(this.bars.values[this.selected] + change, FINE));
    } else if (event.key === "Delete" && this.selected >= 0) {
      this.set(this.selected, 0);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * Where a pointer is. The page may be zoomed: the element's own pixels count.
   * @param {PointerEvent} event
   */
  spot(event) {
    const box = this.drawing.getBoundingClientRect();
    const zoom = box.width / this.size.width || 1;
    const x = (event.clientX - box.left) / zoom;
    return {
      index: barAt(x, countOf(this.layout), this.size.width),
      y: (event.clientY - box.top) / zoom,
    };
  }

  /** @param {number} index */
  select(index) {
    if (this.selected === index) return;
    this.selected = index;
    this.draw();
  }

  /**
   * @param {number} index
   * @param {number} weight
   */
  set(index, weight) {
    const text = String(this.text.value ?? "");
    this.write(withWeight(text, this.weightType, this.layout, index, weight));
  }

  /** @param {string} text */
  write(text) {
    if (text !== this.text.value) {
      page.setValue(this.text, text);
      this.node.graph?.setDirtyCanvas(true, true);
    }
    this.draw();
  }

  /** Draws if what the text says is not what is shown. */
  follow() {
    if (this.state() !== this.shown) this.draw();
  }

  state() {
    return [this.text.value, this.weightType, this.node.properties[PROPERTY]].join("\n");
  }

  draw() {
    this.shown = this.state();
    const { width, height } = this.size;
    const bars = this.bars;
    const count = countOf(this.layout);
    const range = this.range ?? rangeOf(bars.values);
    const name = Object.keys(LAYOUTS).find((key) => LAYOUTS[key] === this.layout);
    this.base.value = name ?? "SDXL";
    this.say(bars);
    if (width <= 0 || height <= 0) return;
    const frame = { count, range, width, height };
    this.drawing.replaceChildren(
      ...this.sides(frame),
      ...bars.values.map((value, index) => this.bar(index, value, bars, frame)),
      this.level(0, frame, "0.8"),
      this.level(1, frame, "0.35"),
    );
  }

  /**
   * The names of the sides, with a line where one begins.
   * @param {{count: number, width: number, height: number}} frame
   */
  sides({ count, width, height }) {
    const { input, middle, output } = this.layout;
    const slot = width / count;
    const middleAt = input + middle / 2;
    return [
      this.label("input", (input / 2) * slot, height + 22),
      this.label("mid", middleAt * slot, height + 22),
      this.label("output", (input + middle + output / 2) * slot, height + 22),
      ...[input, input + middle].map((index) =>
        page.shape("line", {
          x1: index * slot, x2: index * slot, y1: 0, y2: height + LABELS, stroke: page.COLOURS.line,
        }),
      ),
    ];
  }

  /**
   * @param {string} text
   * @param {number} x
   * @param {number} y
   */
  label(text, x, y) {
    const look = { "text-anchor": "middle", "font-size": 9, fill: quiet };
    return page.shape("text", { x, y, ...look }, [text]);
  }

  /**
   * @param {number} index
   * @param {number} value
   * @param {ReturnType<typeof barsOf>} bars
   * @param {{count: number, range: import("./bars.js").Range, width: number, height: number}} frame
   */
  bar(index, value, bars, frame) {
    const colour = ROLES[roleOf(this.layout, index)];
    const look = {
      fill: colour,
      "fill-opacity": bars.own ? 0.9 : 0.3,
      stroke: index === this.selected ? page.COLOURS.text : colour,
      "stroke-dasharray": bars.swapped[index] ? "3 2" : "none",
    };
    const box = barBox(index, value, frame);
    const number = this.label(String(index), box.x + box.width / 2, frame.height + 11);
    return page.shape("g", { "data-layer": index }, [
      page.shape("rect", { ...box, ...look }),
      number,
    ]);
  }

  /**
   * @param {number} value
   * @param {{range: import("./bars.js").Range, width: number, height: number}} frame
   * @param {string} opacity
   */
  level(value, { range, width, height }, opacity) {
    const y = yOf(value, range, height);
    const look = { stroke: quiet, "stroke-opacity": opacity, "pointer-events": "none" };
    return page.shape("line", { x1: 0, x2: width, y1: y, y2: y, ...look });
  }

  /** @param {ReturnType<typeof barsOf>} bars */
  say(bars) {
    const beyond = [...bars.weights.keys()].filter((index) => index >= countOf(this.layout));
    const problem = bars.errors[0]
      ?? (beyond.length ? `Left out: layer ${beyond.join(", ")}, beyond ${this.base.value}.` : "");
    const idle = bars.own ? LEGEND : `As weight_type: ${this.weightType}`;
    this.status.style.color = problem ? page.COLOURS.wrong : quiet;
    this.status.textContent = this.selected < 0 || bars.errors.length
      ? problem || idle
      : this.about(this.selected, bars);
  }

  /**
   * @param {number} index
   * @param {ReturnType<typeof barsOf>} bars
   */
  about(index, bars) {
    const role = roleOf(this.layout, index);
    const away = bars.swapped[index] ? ", pushed away from" : "";
    const where = [`Layer ${index}`, sideOf(this.layout, index), ...(role ? [role + away] : [])];
    return `${where.join(", ")}: ${snap(bars.values[index] ?? 0, FINE)}`;
  }
}

const ROOT = { display: "flex", "flex-direction": "column", gap: "4px", height: "100%" };
const DRAWING = {
  flex: "1 1 0", minHeight: "100px", width: "100%", touchAction: "none", outlineOffset: "-1px",
  background: page.COLOURS.back, borderRadius: "4px", cursor: "ns-resize", userSelect: "none",
};
const BUTTON = {
  flex: "1 1 0", "min-width": "0", "font-size": "11px", color: page.COLOURS.text,
  background: page.COLOURS.back, border: `1px solid ${page.COLOURS.line}`, "border-radius": "4px",
};
// Long messages take lines from the drawing.
const STATUS = { "font-size": "11px", "min-height": "15px", "overflow-wrap": "anywhere" };

app.registerExtension({
  name: "ImagePrompt.LayerEditor",
  nodeCreated(node) {
    const text = page.widgetOf(node, "layer_weights");
    if (!text || !page.isOurNode(node)) return;
    const editor = new LayerEditor(node, text);
    page.place(node, "layer_editor", editor.root, () => HEIGHT);
    page.onChange(node, ["layer_weights", "weight_type"], () => editor.follow());
  },
});
