import assert from "node:assert/strict";
import test from "node:test";

import * as layers from "../../web/js/layers.js";

const { SDXL } = layers.LAYOUTS;
const SD15 = layers.LAYOUTS["SD1.5"];

test("layouts have the layers of their models", () => {
  assert.equal(layers.countOf(SDXL), 11);
  assert.equal(layers.countOf(SD15), 16);
  assert.deepEqual([3, 4, 5].map((index) => layers.sideOf(SDXL, index)), [
    "input", "middle", "output",
  ]);
  assert.deepEqual([5, 6, 7].map((index) => layers.sideOf(SD15, index)), [
    "input", "middle", "output",
  ]);
  assert.equal(layers.roleOf(SDXL, 6), "style");
  assert.equal(layers.roleOf(SD15, 4), "composition");
  assert.equal(layers.roleOf(SD15, 7), "");
});

test("text is read and written back", () => {
  const { weights, errors } = layers.parse(" 6:1 ; 3: -2.5,\n0:.5, ");
  assert.deepEqual(errors, []);
  assert.equal(layers.format(weights), "0:0.5, 3:-2.5, 6:1");
  assert.equal(layers.parse("").weights.size, 0);
});

for (const [text, message] of [
  ["3", 'no ":"'],
  ["a:1", "number of a layer"],
  ["-1:1", "number of a layer"],
  ["3:", "expected a number"],
  ["3:nan", "expected a number"],
  ["3:1e999", "expected a number"],
]) {
  test(`"${text}" is explained`, () => {
    const { errors } = layers.parse(text);
    assert.equal(errors.length, 1);
    assert.ok(errors[0].includes(message), errors[0]);
  });
}

test("of a layer that is there twice the last counts", () => {
  const { weights, errors } = layers.parse("3:1, 6:1, 03:2");
  assert.deepEqual(errors, []);
  assert.equal(layers.format(weights), "3:2, 6:1");
});

test("an empty text shows the weight type, and one change keeps the others", () => {
  const bars = layers.barsOf("", "style and composition", SDXL);
  assert.equal(bars.own, false);
  assert.deepEqual(bars.values, [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]);
  const text = layers.withWeight("", "style and composition", SDXL, 0, 0.5);
  assert.equal(text, "0:0.5, 3:1, 6:1");
});

test("layers without an entry rest, and all at rest is not an empty text", () => {
  assert.equal(layers.withWeight("3:1", "linear", SDXL, 3, 0), "0:0");
  assert.equal(layers.withWeight("0:0", "linear", SDXL, 6, 1), "6:1");
});

test("layers beyond the layout are kept", () => {
  assert.equal(layers.withWeight("15:1", "linear", SDXL, 3, 2), "3:2, 15:1");
});

test("a text with errors is left alone", () => {
  assert.equal(layers.withWeight("3;1", "linear", SDXL, 3, 2), "3;1");
});

test("presets", () => {
  assert.equal(layers.presetText("style transfer", SDXL), "6:1");
  assert.equal(layers.presetText("composition", SD15), "4:0.25, 5:1");
  assert.ok(layers.presetText("ease in", SDXL).startsWith("0:1, 1:0.91"));
  assert.ok(!layers.PRESETS.includes("style transfer precise"));
});

test("precise types show what they push away from", () => {
  const { swapped } = layers.barsOf("", "style transfer precise", SDXL);
  assert.deepEqual(swapped.map(Number), [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
});
