/**
 * Keeps what the nodes of this pack say.
 *
 * ComfyUI's page shows a text that the server sends while a node runs, in a widget that is never saved. It forgets it
 * when the nodes are made anew, as another tab does, and it gets none from a node that comes from the cache. What a
 * node returned is kept for each tab, and sent for a cached node as well. So the text lies there, and is shown from
 * there in the same widget: by the same event that the page fires for a text of the server.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addressOf, isOurs, nodeAt } from "./nodes.js";

const TEXT = "page_text"; // under this name nodes/shared/texts.py has it in what a node returns
const NEW_LINE = "  \n"; // as page_text writes it
const EVENT = "progress_text";

/** Shows every text that is kept for the nodes of the graph on the screen, which may be an opened subgraph. */
function showAll() {
    const nodes = app.canvas?.graph?.nodes ?? [];
    for (const node of nodes.filter(isOurs)) {
        // There are several where the node ran for each entry of a list.
        const text = app.nodeOutputs[addressOf(node)]?.[TEXT]?.join(NEW_LINE);
        if (text) api.dispatchCustomEvent(EVENT, { nodeId: String(node.id), text, isKept: true });
    }
}

/** Keeps a text that came while a node runs, such as the last one of a run that was stopped. */
function keep({ detail }) {
    // Those of `showAll` have the id that a node has in the graph on the screen.
    const node = detail.isKept ? undefined : nodeAt(detail.nodeId);
    if (!isOurs(node)) return;
    const address = addressOf(node);
    app.nodeOutputs[address] = { ...app.nodeOutputs[address], [TEXT]: [detail.text] };
}

app.registerExtension({
    name: "EraseAnything.Texts",
    setup() {
        api.addEventListener(EVENT, keep);
        api.addEventListener("executed", showAll);
        app.canvas.canvas.addEventListener("litegraph:set-graph", showAll);
    },
    onNodeOutputsUpdated: showAll,
    afterConfigureGraph: showAll,
});
