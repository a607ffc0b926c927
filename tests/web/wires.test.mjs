import assert from "node:assert/strict";
import { test } from "node:test";

import { dependents, nodesOf, reached } from "../../web/js/wires.js";

/** A graph of these nodes, each with the ids of the nodes that its inputs come from. */
function graphOf(wires, subgraphs = {}) {
  const links = new Map();
  const nodes = Object.keys(wires).map((id) => ({
    id: Number(id), inputs: [], outputs: [{ links: [] }], subgraph: subgraphs[id],
  }));
  const graph = {
    nodes,
    getNodeById: (id) => nodes.find((node) => node.id === id),
    getLink: (number) => links.get(number),
  };
  for (const node of nodes) {
    node.graph = graph;
    for (const origin of wires[node.id]) {
      const number = links.size;
      links.set(number, { origin_id: origin, target_id: node.id });
      node.inputs.push({ link: number });
      graph.getNodeById(origin).outputs[0].links.push(number);
    }
  }
  return graph;
}

const inner = graphOf({ 3: [], 4: [3], 8: [] });
const graph = graphOf({ 1: [], 2: [1], 5: [2], 6: [5], 7: [1] }, { 5: inner });

test("what needs a node's result comes after it, whole subgraphs included", () => {
  assert.deepEqual([...dependents(graph, "2").keys()], ["2", "5", "5:3", "5:4", "5:8", "6"]);
  assert.deepEqual([...dependents(graph, "7").keys()], ["7"]);
});

test("inside a subgraph, what comes after the subgraph needs it, too", () => {
  assert.deepEqual([...dependents(graph, "5:3").keys()], ["6", "5:3", "5:4"]);
});

test("what comes before a node, the nearest first", () => {
  assert.deepEqual(reached(graph.getNodeById(6), "before").map((node) => node.id), [6, 5, 2, 1]);
});

test("an id that is in no graph names nothing", () => {
  assert.deepEqual(nodesOf(graph, "5:9"), []);
  assert.equal(dependents(graph, "9").size, 0);
});

test("wires in a circle end", () => {
  const circle = graphOf({ 1: [2], 2: [1] });
  assert.deepEqual(reached(circle.getNodeById(1), "after").map((node) => node.id), [1, 2]);
});
