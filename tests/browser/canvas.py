"""ComfyUI's page as a user has it: opens a graph, runs it, and says what can be seen on a node."""

import base64
import io
import time
from typing import Any

from PIL import Image

from scripts.graph import Graph, api_to_ui
from scripts.server import ComfyServer

SECONDS = 1000  # playwright counts in ms
PATIENCE = 300 * SECONDS  # for what has to come, on two cores that eight processes share
FOLLOW = """() => {
    window.ended = null;
    window.said = [];
    window.bars = [];
    window.previews = 0;
    window.app.api.addEventListener("progress_text", event => window.said.push(event.detail.text));
    window.app.api.addEventListener("progress", event => window.bars.push([event.detail.value, event.detail.max]));
    window.app.api.addEventListener("b_preview_with_metadata", event => {
        window.previews += 1;
        window.preview = event.detail.blob;
    });
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        window.app.api.addEventListener(kind, event => { window.ended = [kind, event.detail]; });
}"""
# Where a text begins in each of some elements, if nothing lies over it.
TOPMOST = """(elements, start) => elements.map(element => {
    const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (texts.nextNode())
        if (texts.currentNode.data.trim().startsWith(start)) range.selectNodeContents(texts.currentNode);
    const box = range.getClientRects()[0];
    if (!box) return null;
    const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return element.contains(top) ? [box.left, box.top, box.width, box.height] : null;
})"""
TEXTS = "span, .comfy-markdown-content"  # the elements in which the two renderers show a node's text
# The pictures on a node that have arrived: an element for each in Nodes 2.0, and in the other renderer a node's `imgs`.
SHOWN = """([id, isVue]) => {
    const elements = [...document.querySelectorAll(`[data-node-id="${id}"] img`)];
    const visible = elements.filter(element => element.checkVisibility() && element.clientWidth);
    const painted = window.app.canvas.graph.getNodeById(Number(id)).imgs ?? [];
    return (isVue ? visible : painted).filter(picture => picture.naturalWidth);
}"""
PICTURES = f"node => ({SHOWN})(node).map(picture => picture.src)"
LIVE = f"""([height, ...node]) =>
    ({SHOWN})(node).some(picture => picture.src.startsWith("blob:") && picture.naturalHeight === height)"""
SETTLED = f"""node => {{
    const addresses = ({PICTURES})(node);
    return addresses.length && !addresses.some(address => address.startsWith('blob:'));
}}"""
# Looks at a node before every frame: how many pictures it had at most.
WATCH = f"""node => {{
    window.most = 0;
    const look = () => {{
        window.most = Math.max(window.most, ({PICTURES})(node).length);
        window.watch = requestAnimationFrame(look);
    }};
    cancelAnimationFrame(window.watch);
    look();
}}"""
PREVIEW = """async () => {
    const bytes = new Uint8Array(await window.preview.arrayBuffer());
    return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
# A node on the screen: its corner, width and height.
BOX = """id => {
    const [x, y, width, height] = window.app.canvas.graph.getNodeById(Number(id)).boundingRect;
    const { scale, offset } = window.app.canvas.ds;
    return [(x + offset[0]) * scale, (y + offset[1]) * scale, width * scale, height * scale];
}"""
# Whether everything is where it was some frames ago. A busy machine draws few frames, and so it gets more time.
STILL = """([frames, isVue]) => {
    const { graph, ds } = window.app.canvas;
    const drawn = [...document.querySelectorAll("[data-node-id]")].map(element => element.getBoundingClientRect());
    if (isVue && drawn.length < graph.nodes.length) return false;
    const places = [ds.scale, ds.offset, graph.id, graph.nodes.map(node => [...node.boundingRect]), drawn];
    const seen = JSON.stringify(places);
    window.still = seen === window.seen ? window.still + 1 : 0;
    window.seen = seen;
    return window.still >= frames;
}"""
STILL_FRAMES = 12
LIGHT = 200  # of 255
# Where the view starts: the upper left corner of a node, right of and below the page's own bars. A tall node is shown
# smaller, for its text is at its end.
LOOK = """id => {
    const node = window.app.canvas.graph.getNodeById(id);
    const view = window.app.canvas.ds;
    view.scale = Math.min(1, 750 / node.boundingRect[3]);
    view.offset = [120 / view.scale - node.pos[0], 160 / view.scale - node.pos[1]];
    window.app.canvas.setDirty(true, true);
}"""
OPEN_SUBGRAPH = """id => {
    const node = window.app.graph.getNodeById(id);
    window.app.canvas.openSubgraph(node.subgraph, node);
}"""
NEW_TAB = "() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')"
TABS = ".workflow-tabs .p-togglebutton"
ACTIVE_TAB = "() => window.app.extensionManager.workflow.activeWorkflow.path"
ANOTHER_TAB = f"path => ({ACTIVE_TAB})() !== path"
SEARCH = "input[role=combobox]"  # the field of the search for a node
OPEN_SEARCH = "() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
RESULTS = '[data-testid="result-item"]'  # what it finds
LIBRARY = "Node Library"  # the button of its tab
PANEL = ".sidebar-content-container"
SEARCH_AT = (800, 450)  # px: a place that the search lies over
BARE = "([x, y]) => document.elementFromPoint(x, y)?.id === 'graph-canvas'"
# The page puts up a graph of its own, and then says in which tab.
READY = """() => window.app?.vueAppReady && window.app.extensionManager.workflow.activeWorkflow
    && window.app.rootGraph.nodes.length > 0"""


class Canvas:
    """The page of a running ComfyUI in one renderer.

    Args:
        page: of playwright.
        server: that the page is from.
        vue: whether nodes are drawn by Nodes 2.0.
    """

    def __init__(self, page: Any, server: ComfyServer, vue: bool) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE)
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
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY)
        self.page.evaluate(FOLLOW)

    def wait_until_still(self) -> None:
        """Waits until the page has measured and drawn its nodes."""
        self.page.evaluate("() => { window.seen = null; window.still = 0; }")
        self.page.wait_for_function(STILL, arg=[STILL_FRAMES, self.vue])

    def open(self, workflow: dict) -> None:
        """Opens a workflow in a tab of its own, as the template browser does."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.wait_until_still()

    def open_new_tab(self) -> None:
        """Opens an empty workflow."""
        self.page.evaluate(NEW_TAB)
        self.page.wait_for_function("() => window.app.graph.nodes.length === 0")
        self.wait_until_still()

    def switch_tab(self, number: int) -> None:
        """Clicks another one of the tabs; -1 is the last one."""
        path = self.page.evaluate(ACTIVE_TAB)
        self.page.locator(TABS).nth(number).click()
        self.page.wait_for_function(ANOTHER_TAB, arg=path)
        self.wait_until_still()

    def look_at(self, node: str) -> None:
        """Moves the view to a node."""
        self.page.evaluate(LOOK, int(node))
        self.wait_until_still()

    def open_subgraph(self, node: str) -> None:
        """Shows the graph inside a node."""
        self.page.evaluate(OPEN_SUBGRAPH, int(node))
        self.page.wait_for_function("() => window.app.canvas.graph !== window.app.rootGraph")
        self.wait_until_still()

    def search(self, words: str) -> Any:
        """Types into the search for a node, and opens it first.

        It is opened by its command: on a busy machine two clicks may be too far apart for a double click.

        Returns:
            Its results as a playwright locator, best first. Until typing has paused, they are of an earlier search.
        """
        field = self.page.locator(SEARCH)
        if not field.is_visible():
            self.page.evaluate(OPEN_SEARCH)
        field.fill(words)
        return self.page.locator(RESULTS)

    def close_search(self) -> None:
        """Leaves the search, and waits until it has faded: it lies over the canvas and would take the next click."""
        self.page.keyboard.press("Escape")
        self.page.wait_for_function(BARE, arg=SEARCH_AT)

    def open_library(self) -> Any:
        """Opens the library of nodes; returns its panel, a playwright locator."""
        self.page.get_by_role("button", name=LIBRARY).click()
        panel = self.page.locator(PANEL)
        panel.locator(SEARCH).wait_for()
        return panel

    def search_library(self, words: str) -> None:
        """Types into the search of the open library, which looks once typing has paused."""
        self.page.locator(PANEL).locator(SEARCH).fill(words)

    def close_library(self) -> None:
        """Closes the library."""
        self.page.get_by_role("button", name=LIBRARY).click()
        self.page.locator(PANEL).locator(SEARCH).wait_for(state="hidden")

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
        self.page.evaluate("() => { window.ended = null; window.said = []; window.bars = []; window.previews = 0; }")
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
        self.page.wait_for_function("() => window.ended")
        return self.page.evaluate("() => window.ended")

    def _outputs(self) -> dict[str, dict]:
        """Waits for the end of the graph that was queued."""
        kind, detail = self.end()
        assert kind == "execution_success", detail["exception_message"]
        return self.server.history(detail["prompt_id"])["outputs"]

    def pictures_on(self, node: str) -> list[str]:
        """Addresses of the pictures that are drawn on a node, once there are some and its previews are gone."""
        self.page.wait_for_function(SETTLED, arg=[node, self.vue])
        return self.page.evaluate(PICTURES, [node, self.vue])

    def live_preview(self, node: str) -> Image.Image:
        """The second preview of a run, once the node shows it: the first one has curves alone."""
        self.page.wait_for_function("() => window.previews >= 2")
        preview = Image.open(io.BytesIO(base64.b64decode(self.page.evaluate(PREVIEW))))
        self.page.wait_for_function(LIVE, arg=[preview.height, node, self.vue])
        return preview

    def watch_pictures(self, node: str) -> None:
        """Counts the pictures on a node from now on; see `most_pictures`."""
        self.page.evaluate(WATCH, [node, self.vue])

    def most_pictures(self) -> int:
        """The most pictures that the watched node had at a time."""
        return self.page.evaluate("() => { cancelAnimationFrame(window.watch); return window.most; }")

    def text_with(self, line: str) -> Any:
        """The element, a playwright locator, in which a node shows a text with this line."""
        found = self.page.locator(TEXTS, has_text=line).last
        found.wait_for(state="visible")
        return found

    def is_on_screen(self, line: str) -> bool:
        """Whether a line of text can be read: nothing lies over it, and its place has light and dark pixels.

        Several nodes may say the same, so one of them is enough; after a minute as it is.
        """
        end = time.monotonic() + 60
        found = self.page.locator(TEXTS, has_text=line)
        while time.monotonic() < end:
            boxes = found.evaluate_all(TOPMOST, line.strip()[:20])
            if any(self._can_be_read(box) for box in boxes):
                return True
            self.wait_until_still()
        return False

    def _can_be_read(self, box: list[float] | None) -> bool:
        """Whether a place on the screen, if there is one, has light and dark pixels."""
        if box is None:
            return False
        darkest, lightest = self._screen(box).getextrema()
        return lightest - darkest > 100

    def light_share(self, node: str) -> float:
        """Which share of a node's pixels on the screen is light: sheets of pictures and curves are."""
        counts = self._screen(self.page.evaluate(BOX, node)).histogram()
        return sum(counts[LIGHT:]) / sum(counts)

    def _screen(self, box: list[float]) -> Image.Image:
        """A place on the screen in grey."""
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("L")
