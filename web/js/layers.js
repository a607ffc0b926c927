// Layer weights as text and as numbers. No page, no canvas: tests/web runs it in Node.

/**
 * Where a base model keeps what, by transformer index in execution order.
 * @typedef {object} Layout
 * @property {number} input      how many indices the input side has; they come first
 * @property {number} middle
 * @property {number} output
 * @property {number[]} style
 * @property {Readonly<Record<number, number>>} composition index to its share
 *
 * @typedef {{factor: number, swapped?: boolean}} Share
 *   strength as a multiple of the weight; swapped: the result is pushed away from the picture
 *
 * @typedef {object} Parsed
 * @property {Map<number, number>} weights
 * @property {string[]} errors one sentence for each entry that cannot be read
 */

/** @type {Readonly<Record<string, Layout>>} */
export const LAYOUTS = {
  SDXL: { input: 4, middle: 1, output: 6, style: [6], composition: { 3: 1 } },
  "SD1.5": {
    input: 6,
    middle: 1,
    output: 9,
    style: [0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15],
    composition: { 4: 0.25, 5: 1 },
  },
};

/** @param {Layout} layout */
export function countOf(layout) {
  return layout.input + layout.middle + layout.output;
}

/**
 * @param {Layout} layout
 * @param {number} index
 * @returns {"input" | "middle" | "output"}
 */
export function sideOf(layout, index) {
  if (index < layout.input) return "input";
  return index < layout.input + layout.middle ? "middle" : "output";
}

/**
 * @param {Layout} layout
 * @param {number} index
 * @returns {"style" | "composition" | ""}
 */
export function roleOf(layout, index) {
  if (layout.style.includes(index)) return "style";
  return index in layout.composition ? "composition" : "";
}

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** @param {string} text */
export function toNumber(text) {
  return NUMBER.test(text) ? Number(text) : NaN;
}

/**
 * Reads "index:weight, index:weight"; commas, semicolons and new lines separate, and of a layer
 * that is there twice the last counts.
 * @param {string} text
 * @returns {Parsed}
 */
export function parse(text) {
  /** @type {Parsed} */
  const result = { weights: new Map(), errors: [] };
  text.split(/[,;\n]/).forEach((piece, position) => {
    const entry = piece.trim();
    const problem = entry && readEntry(entry, result.weights);
    if (problem) result.errors.push(`Entry ${position + 1}, "${entry}": ${problem}`);
  });
  return result;
}

/**
 * Adds one entry to `weights`; returns what is wrong with it, if anything.
 * @param {string} entry
 * @param {Map<number, number>} weights
 */
function readEntry(entry, weights) {
  const colon = entry.indexOf(":");
  if (colon < 0) return 'no ":". Write layer:strength, as in 3:0.8.';
  const name = entry.slice(0, colon).trim();
  const weight = toNumber(entry.slice(colon + 1).trim());
  if (!/^\d{1,6}$/.test(name)) return 'expected the number of a layer before ":".';
  if (!Number.isFinite(weight)) return 'expected a number such as 0.8 after ":".';
  weights.set(Number(name), weight);
  return "";
}

/**
 * The text that `parse` reads back, in layer order.
 * @param {Map<number, number>} weights
 */
export function format(weights) {
  const entries = [...weights].sort(([a], [b]) => a - b);
  return entries.map(([index, weight]) => `${index}:${tidy(weight)}`).join(", ");
}

/**
 * Three decimals at most, without -0.
 * @param {number} weight
 */
export function tidy(weight) {
  return Math.round(weight * 1000) / 1000 + 0;
}

/**
 * The text of a set of weights where every layer counts. A layer without an entry rests, so zeros
 * are left out; but an empty text means "as weight_type says", so one zero stays if all are zero.
 * @param {Map<number, number>} weights
 */
export function formatAll(weights) {
  const acting = new Map([...weights].filter(([, weight]) => tidy(weight) !== 0));
  return acting.size ? format(acting) : "0:0";
}

/** @param {(place: number) => number} shape of the place 0..1 @returns {Rule} */
const ramp = (shape) => (spot) => ({ factor: 0.05 + 0.95 * shape(spot.place) });
/** @param {string[]} sides @returns {Rule} */
const weak = (...sides) => (spot) => ({ factor: sides.includes(spot.side) ? 0.2 : 1 });

/**
 * @typedef {{place: number, side: string, style: boolean, composition: number}} Spot
 * @typedef {(spot: Spot) => Share} Rule
 * @type {Readonly<Record<string, Rule>>}
 */
const RULES = {
  linear: () => ({ factor: 1 }),
  "ease in": ramp((place) => 1 - place),
  "ease out": ramp((place) => place),
  "ease in-out": ramp((place) => 1 - Math.abs(place - 0.5) * 2),
  "reverse in-out": ramp((place) => Math.abs(place - 0.5) * 2),
  "weak input": weak("input"),
  "weak output": weak("output"),
  "weak middle": weak("middle"),
  "strong middle": weak("input", "output"),
  "style transfer": (spot) => ({ factor: spot.style ? 1 : 0 }),
  composition: (spot) => ({ factor: spot.composition }),
  "strong style transfer": (spot) => ({ factor: spot.composition ? 0 : 1 }),
  "style and composition": (spot) => ({ factor: spot.composition || (spot.style ? 1 : 0) }),
  "style transfer precise": (spot) =>
    spot.composition
      ? { factor: spot.composition, swapped: true }
      : { factor: spot.style ? 1 : 0 },
  "composition precise": (spot) =>
    spot.composition
      ? { factor: spot.composition }
      : { factor: spot.style ? 1 : 0.1, swapped: true },
};

/** What the editor offers as a start: the weight types that are nothing but strengths. */
export const PRESETS = Object.keys(RULES).filter((name) => !name.endsWith("precise"));

/**
 * How strongly each layer acts under a weight type.
 * @param {string} weightType
 * @param {Layout} layout
 * @returns {Share[]}
 */
export function sharesOf(weightType, layout) {
  const rule = RULES[weightType] ?? RULES.linear;
  const count = countOf(layout);
  return Array.from({ length: count }, (_, index) =>
    rule({
      place: index / count,
      side: sideOf(layout, index),
      style: layout.style.includes(index),
      composition: layout.composition[index] ?? 0,
    }),
  );
}

/**
 * What the bars show: the text's own weights, or, where the text is empty, the weight type's.
 * @param {string} text
 * @param {string} weightType
 * @param {Layout} layout
 */
export function barsOf(text, weightType, layout) {
  const { weights, errors } = parse(text);
  const shares = sharesOf(weightType, layout);
  const own = weights.size > 0 || errors.length > 0;
  return {
    own,
    errors,
    weights,
    values: shares.map((share, index) => (own ? (weights.get(index) ?? 0) : share.factor)),
    swapped: shares.map((share) => share.swapped ?? false),
  };
}

/**
 * The text after one layer was given a new strength. Layers beyond the layout keep theirs.
 * @param {string} text
 * @param {string} weightType
 * @param {Layout} layout
 * @param {number} index
 * @param {number} weight
 */
export function withWeight(text, weightType, layout, index, weight) {
  const bars = barsOf(text, weightType, layout);
  if (bars.errors.length) return text;
  const weights = new Map(bars.weights);
  bars.values.forEach((value, at) => weights.set(at, value));
  return formatAll(weights.set(index, weight));
}

/**
 * The text of a preset.
 * @param {string} weightType
 * @param {Layout} layout
 */
export function presetText(weightType, layout) {
  const factors = sharesOf(weightType, layout).map((share) => Math.round(share.factor * 100) / 100);
  return formatAll(new Map(factors.entries()));
}
