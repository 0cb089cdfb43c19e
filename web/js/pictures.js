/**
 * Keeps a node of this pack at one picture.
 *
 * Nodes 2.0 draws the live preview of a run below the pictures that the node returned, those of an earlier run as well.
 * It looks up a returned picture once, and takes the preview where there still is one: its address is void soon after.
 * So returned pictures are taken away while there is a preview, and given again when it has gone.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addressOf, isOurs, nodeAt } from "./nodes.js";

const EVENT = "executed";
const WAIT = 100; // ms between two looks whether the preview has gone
const latest = new WeakMap(); // what each node returned last

/** Gives a node what it returned, by the event that the page fires for a message of the server. */
function give(path, output) {
    api.dispatchCustomEvent(EVENT, { node: path, display_node: path, output, isRepeated: true });
}

function hasPreview(node) {
    return Boolean(app.nodePreviewImages[addressOf(node)]?.length);
}

/** Takes away the pictures of an earlier run when a preview comes. */
function makeRoom({ detail }) {
    const node = nodeAt(detail.displayNodeId);
    const output = isOurs(node) && app.nodeOutputs[addressOf(node)];
    if (output?.images?.length) give(detail.displayNodeId, { ...output, images: [] });
}

/** Gives the pictures of a run when the preview has gone, unless the node has gone or ran again. */
function giveLater(path, node, output) {
    if (nodeAt(path) !== node || latest.get(node) !== output) return;
    if (hasPreview(node)) setTimeout(giveLater, WAIT, path, node, output);
    else give(path, output);
}

function waitForThePreview({ detail }) {
    const path = detail.display_node;
    const node = nodeAt(path);
    if (detail.isRepeated || !isOurs(node)) return;
    latest.set(node, detail.output);
    if (!detail.output?.images?.length || !hasPreview(node)) return;
    give(path, { ...detail.output, images: [] });
    giveLater(path, node, detail.output);
}

app.registerExtension({
    name: "EraseAnything.Pictures",
    setup() {
        api.addEventListener("b_preview_with_metadata", makeRoom);
        api.addEventListener(EVENT, waitForThePreview);
    },
});
