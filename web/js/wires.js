// Which nodes a node's result goes to, and where it comes from. No page, no canvas.

/**
 * What is asked of a graph, of a node and of a link.
 * @typedef {{getNodeById(id: any): Node | null | undefined, getLink(id: number): Link | null | undefined,
 *   nodes: Node[]}} Graph
 * @typedef {{id: any, graph?: Graph | null, subgraph?: Graph, inputs?: {link?: number | null}[],
 *   outputs?: {links?: number[] | null}[]}} Node
 * @typedef {{origin_id: any, target_id: any}} Link
 */

/**
 * The nodes that an execution id such as "5:3" names, from the outermost subgraph to the node.
 * @param {Graph} graph the workflow's own
 * @param {string} id
 * @returns {Node[]}
 */
export function nodesOf(graph, id) {
  /** @type {Node[]} */
  const found = [];
  /** @type {Graph | undefined} */
  let inside = graph;
  for (const part of id.split(":")) {
    /** @type {Node | null | undefined} */
    const node = inside?.getNodeById(part) ?? inside?.getNodeById(Number(part));
    if (!node) return [];
    found.push(node);
    inside = node.subgraph;
  }
  return found;
}

/**
 * A node and all that come after it, or before it, in its own graph, the nearest first.
 * @param {Node} node
 * @param {"after" | "before"} way
 * @returns {Node[]}
 */
export function reached(node, way) {
  const found = new Set([node]);
  for (const one of found) {
    const links = way === "after"
      ? (one.outputs ?? []).flatMap((slot) => slot.links ?? [])
      : (one.inputs ?? []).map((slot) => slot.link ?? -1);
    for (const number of links) {
      const link = one.graph?.getLink(number);
      const next = link && one.graph?.getNodeById(way === "after" ? link.target_id : link.origin_id);
      if (next) found.add(next);
    }
  }
  return [...found];
}

/**
 * The nodes that need the result of the node with this execution id, by execution id, itself among
 * them. What comes after a subgraph counts as coming after everything in it.
 * @param {Graph} graph the workflow's own
 * @param {string} id
 * @returns {Map<string, Node>}
 */
export function dependents(graph, id) {
  /** @type {Map<string, Node>} */
  const found = new Map();
  const path = nodesOf(graph, id);
  path.forEach((node, depth) => {
    const prefix = path.slice(0, depth).map((outer) => `${outer.id}:`).join("");
    const last = depth === path.length - 1;
    const after = reached(node, "after").filter((one) => last || one !== node);
    after.forEach((one) => addWhole(one, prefix, found));
  });
  return found;
}

/**
 * Adds a node, and what is in it if it is a subgraph.
 * @param {Node} node
 * @param {string} prefix
 * @param {Map<string, Node>} found
 */
function addWhole(node, prefix, found) {
  const id = `${prefix}${node.id}`;
  found.set(id, node);
  for (const inner of node.subgraph?.nodes ?? []) addWhole(inner, `${id}:`, found);
}
