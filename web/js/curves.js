// Weights over frames: the numbers that IPAdapter Weights makes. No page, no canvas.

import { toNumber } from "./layers.js";

/**
 * The node's widgets.
 * @typedef {object} Settings
 * @property {number[]} weights
 * @property {string} timing
 * @property {number} frames
 * @property {number} start_frame
 * @property {number} end_frame
 * @property {number} add_starting_frames
 * @property {number} add_ending_frames
 * @property {string} method
 */

/** @type {Readonly<Record<string, (time: number) => number>>} */
const EASINGS = {
  linear: (time) => time,
  ease_in_out: (time) => (1 - Math.cos(Math.PI * time)) / 2,
  ease_in: (time) => 1 - Math.cos((Math.PI * time) / 2),
  ease_out: (time) => Math.sin((Math.PI * time) / 2),
};

/** @param {number[]} first @param {number} count @returns {number[]} */
const repeated = (first, count) => Array.from({ length: Math.max(0, count) }, () => first).flat();

/**
 * Reads numbers separated by commas, semicolons or new lines; null if one is none.
 * @param {string} text
 * @returns {number[] | null}
 */
export function parseWeights(text) {
  const parts = text.split(/[,;\n]/).map((part) => part.trim());
  const weights = parts.filter((part) => part).map(toNumber);
  return weights.every(Number.isFinite) ? weights : null;
}

/**
 * The weights of one picture, or of one cross-fade.
 * @param {Settings} settings
 * @returns {number[]}
 */
export function curve(settings) {
  const { weights, timing } = settings;
  if (timing === "custom") return weights;
  const first = weights.length ? weights[0] : 0;
  const last = weights.length ? weights[weights.length - 1] : 1;
  const length = settings.frames || Math.max(1, weights.length);
  const end = Math.min(settings.end_frame, length);
  const moving = progress(timing, Math.max(0, end - settings.start_frame));
  const head = repeated([first], Math.min(settings.start_frame, length));
  const values = [...head, ...moving.map((step) => first + (last - first) * step)];
  return [...values, ...repeated([last], length - values.length)];
}

/**
 * Progress 0..1 over a number of frames.
 * @param {string} timing
 * @param {number} duration
 * @returns {number[]}
 */
function progress(timing, duration) {
  const ease = EASINGS[timing] ?? EASINGS.linear;
  if (duration < 2) return repeated([0], duration);
  const steps = Array.from({ length: duration - 1 }, (_, index) => ease(index / (duration - 1)));
  return [...steps, 1];
}

/**
 * The weight of every frame for this many pictures (0: the curve alone).
 * @param {Settings} settings
 * @param {number} pictures
 * @returns {number[]}
 */
export function schedule(settings, pictures) {
  const values = curve(settings);
  if (!values.length) return [];
  const all = mirrorings(settings.method, pictures).flatMap((mirrored) =>
    mirrored ? mirror(values) : values,
  );
  return [
    ...repeated([all[0]], settings.add_starting_frames),
    ...all,
    ...repeated([all[all.length - 1]], settings.add_ending_frames),
  ];
}

/**
 * For each stretch of frames, whether its weights run mirrored.
 * @param {string} method
 * @param {number} pictures
 */
function mirrorings(method, pictures) {
  if (method === "full batch" || pictures < 2) {
    return Array.from({ length: Math.max(1, pictures) }, () => false);
  }
  const alternate = method === "alternate batches";
  return Array.from({ length: pictures - 1 }, (_, index) => alternate && index % 2 === 1);
}

/** @param {number[]} values */
function mirror(values) {
  const total = Math.min(...values) + Math.max(...values);
  return values.map((value) => total - value);
}

/**
 * Points of a line through the values, at most `limit` of them, for an SVG polyline.
 * @param {number[]} values
 * @param {{width: number, height: number, low: number, high: number}} frame
 * @param {number} [limit]
 */
export function polyline(values, frame, limit = 400) {
  const last = values.length - 1;
  const count = Math.min(values.length, limit);
  const span = frame.high - frame.low || 1;
  /** @param {number} index */
  const point = (index) => {
    const x = last ? (index / last) * frame.width : frame.width / 2;
    const y = frame.height * (1 - (values[index] - frame.low) / span);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  };
  const step = count > 1 ? last / (count - 1) : 0;
  const points = Array.from({ length: count }, (_, at) => point(Math.round(at * step)));
  if (points.length !== 1) return points.join(" ");
  const y = points[0].split(",")[1];
  return `0,${y} ${frame.width},${y}`;
}
