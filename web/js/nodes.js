/** The nodes of this pack, by the names that events and the page have for them. */

import { app } from "../../../scripts/app.js";

const PACK = "EraseAnything_";

/** The address under which the page keeps what a node returned: its id, after that of a subgraph that it is in. */
export function addressOf(node) {
    return node.graph === app.rootGraph ? String(node.id) : `${node.graph.id}:${node.id}`;
}

/** The node that an event is about: the server names each node on the way to it. */
export function nodeAt(path) {
    const ids = String(path).split(":");
    let graph = app.rootGraph;
    for (const id of ids.slice(0, -1)) graph = graph?.getNodeById(Number(id))?.subgraph;
    return graph?.getNodeById(Number(ids.at(-1)));
}

export function isOurs(node) {
    return node?.type?.startsWith(PACK);
}
