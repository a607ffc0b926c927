import assert from "node:assert/strict";
import test from "node:test";

import { curve, parseWeights, polyline, schedule } from "../../web/js/curves.js";

const DEFAULTS = {
  weights: [1, 0],
  timing: "linear",
  frames: 5,
  start_frame: 0,
  end_frame: 9999,
  add_starting_frames: 0,
  add_ending_frames: 0,
  method: "full batch",
};

test("numbers are read, and what is none is not", () => {
  assert.deepEqual(parseWeights("1, .5;\n0.25,,"), [1, 0.5, 0.25]);
  assert.deepEqual(parseWeights(""), []);
  assert.equal(parseWeights("1, one"), null);
});

test("linear goes from first to last", () => {
  assert.deepEqual(curve(DEFAULTS), [1, 0.75, 0.5, 0.25, 0]);
});

test("the curve rests before its start and after its end", () => {
  assert.deepEqual(curve({ ...DEFAULTS, start_frame: 1, end_frame: 4 }), [1, 1, 0.5, 0, 0]);
  assert.deepEqual(curve({ ...DEFAULTS, start_frame: 9 }), [1, 1, 1, 1, 1]);
  assert.deepEqual(curve({ ...DEFAULTS, frames: 0, weights: [] }), [0]);
});

test("custom timing is the list itself", () => {
  const custom = { ...DEFAULTS, timing: "custom", weights: [0.2, 0.9, 0.4] };
  assert.deepEqual(curve(custom), [0.2, 0.9, 0.4]);
});

test("pictures follow each other by method", () => {
  const three = { ...DEFAULTS, frames: 2 };
  assert.deepEqual(schedule(three, 3), [1, 0, 1, 0, 1, 0]);
  assert.deepEqual(schedule({ ...three, method: "shift batches" }, 3), [1, 0, 1, 0]);
  assert.deepEqual(schedule({ ...three, method: "alternate batches" }, 3), [1, 0, 0, 1]);
  const held = { ...three, add_starting_frames: 1, add_ending_frames: 2 };
  assert.deepEqual(schedule(held, 0), [1, 1, 0, 0, 0]);
});

test("a line has a point per frame, and never too many", () => {
  const frame = { width: 100, height: 10, low: 0, high: 1 };
  assert.equal(polyline([1, 0], frame), "0.0,0.0 100.0,10.0");
  assert.equal(polyline([1], frame), "0,0.0 100,0.0");
  assert.equal(polyline(Array(5000).fill(0.5), frame).split(" ").length, 400);
});
