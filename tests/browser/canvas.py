"""ComfyUI's page as a user has it: opens a graph, runs it, and says what can be seen on a node."""

import io
import time
from typing import Any

from PIL import Image

from scripts.graph import Graph, api_to_ui
from scripts.server import ComfyServer

SECONDS = 1000  # playwright counts in ms
PATIENCE = 300 * SECONDS
FOLLOW = """() => {
    window.ended = null;
    window.said = [];
    window.app.api.addEventListener("progress_text", event => window.said.push(event.detail.text));
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        window.app.api.addEventListener(kind, event => { window.ended = [kind, event.detail]; });
}"""
TOPMOST = """(element, start) => {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (texts.nextNode())
        if (texts.currentNode.data.trim().startsWith(start)) range.selectNodeContents(texts.currentNode);
    const box = range.getClientRects()[0];
    if (!box) return null;
    const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return element.contains(top) ? [box.left, box.top, box.width, box.height] : null;
}"""
TEXTS = "span, .comfy-markdown-content"  # the elements in which the two renderers show a node's text
PAINTED = """id => {
    const previews = window.app.nodePreviewImages[id];
    if (previews?.length) return previews;
    return (window.app.graph.getNodeById(id).imgs ?? []).map(picture => picture.src);
}"""
# Where the view starts: the upper left corner of a node, at a zoom of 1, right of and below the page's own bars.
LOOK = """id => {
    const [x, y] = window.app.canvas.graph.getNodeById(id).pos;
    const view = window.app.canvas.ds;
    view.scale = 1;
    view.offset = [120 - x, 160 - y];
    window.app.canvas.setDirty(true, true);
}"""
OPEN_SUBGRAPH = """id => {
    const node = window.app.graph.getNodeById(id);
    window.app.canvas.openSubgraph(node.subgraph, node);
}"""
NEW_TAB = "() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')"
TABS = ".workflow-tabs .p-togglebutton"
RESULTS = '[data-testid="result-item"]'  # of the search for a node
SEARCH_AT = (800, 450)  # px: a place of the canvas without a node, for a double click
READY = "window.app?.graph && window.app.extensionManager && document.querySelector('#graph-canvas')"


class Canvas:
    """The page of a running ComfyUI in one renderer.

    Args:
        page: of playwright.
        server: that the page is from.
        vue: whether nodes are drawn by Nodes 2.0.
    """

    def __init__(self, page: Any, server: ComfyServer, vue: bool) -> None:
        self.page = page
        self.server = server
        self.vue = vue
        self.info = server.object_info()
        settings = {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.TutorialCompleted": True,  # else a first visit is greeted with the templates
            "Comfy.Workflow.Persist": False,
            "Comfy.Minimap.Visible": False,
        }
        server.post("/settings", settings)
        self.load_page()

    def load_page(self) -> None:
        """Loads ComfyUI's page afresh."""
        self.page.goto(self.server.url, timeout=PATIENCE)
        self.page.wait_for_function(READY, timeout=PATIENCE)
        self.page.wait_for_timeout(2 * SECONDS)  # the page puts up an empty graph of its own
        self.page.evaluate(FOLLOW)

    def open(self, workflow: dict) -> None:
        """Opens a workflow in a tab of its own, as the template browser does."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(SECONDS)  # Nodes 2.0 measures and draws its nodes

    def open_new_tab(self) -> None:
        """Opens an empty workflow."""
        self.page.evaluate(NEW_TAB)
        self.page.wait_for_function("() => window.app.graph.nodes.length === 0")
        self.page.wait_for_timeout(SECONDS / 2)

    def switch_tab(self, number: int) -> None:
        """Clicks one of the tabs; -1 is the last one."""
        self.page.locator(TABS).nth(number).click()
        self.page.wait_for_timeout(SECONDS)

    def look_at(self, node: str) -> None:
        """Moves the view to a node."""
        self.page.evaluate(LOOK, int(node))
        self.page.wait_for_timeout(SECONDS / 2)

    def open_subgraph(self, node: str) -> None:
        """Shows the graph inside a node."""
        self.page.evaluate(OPEN_SUBGRAPH, int(node))
        self.page.wait_for_function("() => window.app.canvas.graph !== window.app.rootGraph")
        self.page.wait_for_timeout(SECONDS)

    def search(self, words: str) -> Any:
        """Types into the search for a node; returns its results, best first, as a playwright locator."""
        self.page.mouse.dblclick(*SEARCH_AT)
        self.page.get_by_role("combobox").last.fill(words)
        results = self.page.locator(RESULTS)
        results.first.wait_for(timeout=10 * SECONDS)
        self.page.wait_for_timeout(SECONDS / 2)  # it searches once typing has paused
        return results

    def run(self, graph: Graph) -> dict[str, dict]:
        """Opens a graph, presses Run and waits for its end.

        Returns:
            What the history keeps of each node's output, by the node's key.

        Raises:
            AssertionError: a node failed, with what it said.
        """
        self.open(api_to_ui(graph, self.info))
        return self.run_again()

    def run_again(self) -> dict[str, dict]:
        """Presses Run for the graph that is open; see `run`."""
        self.press_run()
        return self._outputs()

    def press_run(self) -> None:
        """Queues the graph that is open."""
        self.page.evaluate("() => { window.ended = null; window.said = []; }")
        assert self.page.evaluate("() => window.app.queuePrompt(0)"), "the graph was refused"

    def run_values(self, graph: Graph) -> dict[str, dict]:
        """Runs a graph with values that widgets of the page do not have to know; see `run`."""
        self.page.evaluate("graph => window.app.loadApiJson(graph, 'graph')", graph)
        self.page.evaluate("() => { window.ended = null; }")
        client = self.page.evaluate("() => window.app.api.clientId")
        self.server.post("/prompt", {"prompt": graph, "client_id": client})
        return self._outputs()

    def end(self) -> tuple[str, dict]:
        """Waits for the end of the graph that was queued: its kind, and what the server said of it."""
        self.page.wait_for_function("() => window.ended", timeout=PATIENCE)
        return self.page.evaluate("() => window.ended")

    def _outputs(self) -> dict[str, dict]:
        """Waits for the end of the graph that was queued."""
        kind, detail = self.end()
        assert kind == "execution_success", detail["exception_message"]
        prompt_id = detail["prompt_id"]
        return self.server.get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]

    def pictures_on(self, node: str) -> list[str]:
        """Addresses of the pictures that are drawn on a node, once its previews are gone; after 10 s as they are."""
        end = time.monotonic() + 10
        while True:
            shown = self._drawn_on(node)
            is_settled = shown and not any(address.startswith("blob:") for address in shown)
            if is_settled or time.monotonic() > end:
                return shown
            self.page.wait_for_timeout(SECONDS / 10)

    def _drawn_on(self, node: str) -> list[str]:
        """Nodes 2.0 has an element for each picture; the other renderer paints them, and a preview over all others."""
        if self.vue:
            shown = self.page.locator(f'[data-node-id="{node}"] img:visible')
            return [picture.get_attribute("src") for picture in shown.all()]
        return self.page.evaluate(PAINTED, node)

    def text_with(self, line: str) -> Any:
        """The element, a playwright locator, in which a node shows a text with this line."""
        found = self.page.locator(TEXTS, has_text=line).last
        found.wait_for(state="visible", timeout=10 * SECONDS)
        return found

    def is_on_screen(self, line: str) -> bool:
        """Whether a line of text can be read: nothing lies over it, and its place has light and dark pixels.

        Several nodes may say the same, so one of them is enough; after 10 s as it is.
        """
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for element in self.page.locator(TEXTS, has_text=line).all():
                if self._can_be_read(element.evaluate(TOPMOST, line.strip()[:20])):
                    return True
            self.page.wait_for_timeout(SECONDS / 10)
        return False

    def _can_be_read(self, box: list[float] | None) -> bool:
        """Whether a place on the screen, if there is one, has light and dark pixels."""
        if box is None:
            return False
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
        picture = Image.open(io.BytesIO(self.page.screenshot(clip=clip)))
        darkest, lightest = picture.convert("L").getextrema()
        return lightest - darkest > 100
