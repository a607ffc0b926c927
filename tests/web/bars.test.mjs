import assert from "node:assert/strict";
import test from "node:test";

import { barAt, barBox, rangeOf, snap, valueAt, yOf } from "../../web/js/bars.js";

test("the range holds every value and zero", () => {
  assert.deepEqual(rangeOf([]), { low: 0, high: 2 });
  assert.deepEqual(rangeOf([0.5, -0.2, 3.1]), { low: -1, high: 4 });
});

test("a pointer means the bar below it, within the drawing", () => {
  assert.equal(barAt(0, 11, 110), 0);
  assert.equal(barAt(59.9, 11, 110), 5);
  assert.equal(barAt(500, 11, 110), 10);
  assert.equal(barAt(-3, 11, 110), 0);
});

test("value and place belong together", () => {
  const range = { low: -1, high: 3 };
  for (const value of [-1, -0.25, 0, 1.4, 3]) {
    assert.equal(valueAt(yOf(value, range, 200), range, 200), value);
  }
  assert.equal(valueAt(-50, range, 200), 3);
});

test("values are in steps, and zero has no sign", () => {
  assert.equal(snap(0.4749), 0.45);
  assert.ok(Object.is(snap(-0.01), 0));
});

test("bars stand on zero, or hang from it", () => {
  const frame = { count: 2, range: { low: -1, high: 1 }, width: 20, height: 100 };
  const up = barBox(0, 1, frame);
  const down = barBox(1, -1, frame);
  assert.equal(up.y, 0);
  assert.equal(up.y + up.height, down.y);
  assert.ok(up.x + up.width <= 10 && down.x >= 10);
});
