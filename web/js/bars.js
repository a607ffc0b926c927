// Where bars are, and which value a pointer means. Lengths are CSS pixels of the drawing.

/** @typedef {{low: number, high: number}} Range values at the lower and the upper edge */

const STEP = 0.05;
const LOWEST_TOP = 2;

/**
 * A range that holds all values, zero, and some room above.
 * @param {number[]} values
 * @returns {Range}
 */
export function rangeOf(values) {
  return {
    low: Math.min(0, Math.floor(Math.min(0, ...values))),
    high: Math.max(LOWEST_TOP, Math.ceil(Math.max(0, ...values))),
  };
}

/**
 * @param {number} x
 * @param {number} count
 * @param {number} width
 */
export function barAt(x, count, width) {
  return Math.min(count - 1, Math.max(0, Math.floor((x / width) * count)));
}

/**
 * @param {number} y
 * @param {Range} range
 * @param {number} height
 */
export function valueAt(y, range, height) {
  const share = Math.min(1, Math.max(0, 1 - y / height));
  return snap(range.low + share * (range.high - range.low));
}

/**
 * @param {number} value
 * @param {Range} range
 * @param {number} height
 */
export function yOf(value, range, height) {
  return height * (1 - (value - range.low) / (range.high - range.low));
}

/**
 * @param {number} value
 * @param {number} [step]
 */
export function snap(value, step = STEP) {
  return Math.round((Math.round(value / step) * step) * 1000) / 1000 + 0;
}

/**
 * @param {number} index
 * @param {number} value
 * @param {{count: number, range: Range, width: number, height: number}} frame
 */
export function barBox(index, value, frame) {
  const slot = frame.width / frame.count;
  const gap = Math.min(3, slot * 0.15);
  const zero = yOf(0, frame.range, frame.height);
  const end = yOf(value, frame.range, frame.height);
  return {
    x: index * slot + gap / 2,
    y: Math.min(zero, end),
    width: slot - gap,
    height: Math.max(1, Math.abs(zero - end)),
  };
}
