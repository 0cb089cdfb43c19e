"""Every shipped workflow as a person meets it: opened, read, run, stopped and gone on with, in both renderers."""

import json
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eraseanything_core.training.curves import LABEL_HEIGHT, strip
from scripts.erase_settings import GROUPS, SETTINGS, TRAINER, with_settings
from scripts.graph import api_to_ui, ui_to_api
from scripts.workflows import flux
from scripts.workflows.blueprint import blueprints
from tests.browser.canvas import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
FLUX_FILES = {*flux.MODELS, flux.ERASER, flux.ERASER.replace(flux.WORD, "dog")}
RUNNABLE = [name for name in WORKFLOWS if not name.startswith("flux_")]  # FLUX.1-dev needs a GPU, and its files
# With a cache that keeps everything: in the second renderer the nodes come from it, on a page that is freshly loaded.
ARGUMENTS = ("--cache-lru", "1000")
FEW = {
    "steps": 4,
    "refresh_every": 4,
    "monitor_every": 4,
    "look_pictures": 1,
    "look_steps": 2,
    "stop_when_gone": False,
    "width": 64,
    "height": 64,
    "sampling_steps": 4,
    "cached_trajectories": 4,
    "cached_retain_trajectories": 4,
    "rsc_samples": 4,
    "batch_size": 2,
    "retain_batch_size": 2,
}
MANY = FEW | {"steps": 60, "refresh_every": 60}  # so many that one can stop it in the middle
LABELS = ("before", "now", "neighbour now")  # of the pictures that a run shows
SHORTENED = {
    TRAINER: {"preset": "quick"},
    "EraseAnything_EraseStrength": {"strength": 1.0},  # nothing is measured for it
    "EraseAnything_PromptSet": {"count": 1},
    "EmptySD3LatentImage": {"batch_size": 1},
}
SEARCHED = ("remove concept", "forget", "unlearn", "erase", "negative", "uncensor", "nsfw")
# For these the page has nodes of its own, and those that people use more come first.
USED_MORE = ("negative", "nsfw")
OTHER = "KSampler"  # a search that does not find the trainer
# In the second renderer the pictures come from the cache, and ComfyUI does not ask the nodes before them.
BEHIND_CACHED = ("tinyflux_attention_erase", "tinyflux_at_sampling")
SMALLEST_TEXT = 8  # px on the screen
MOST_WIDGETS = 10
NODES = """() => window.app.canvas.graph.nodes.map(node => ({
    id: String(node.id),
    type: node.type,
    isKnown: node.type in window.LiteGraph.registered_node_types,
    isRed: Boolean(node.has_errors),
    box: [...node.boundingRect],
    widgets: (node.widgets ?? []).map(widget => widget.name),
}))"""
# The canvas writes the names of inputs and widgets in one size; in Nodes 2.0 they are elements.
TEXT_SIZES = """isVue => {
    const scale = window.app.canvas.ds.scale;
    if (!isVue) return window.app.canvas.low_quality ? [0] : [window.LiteGraph.NODE_SUBTEXT_SIZE * scale];
    const names = document.querySelectorAll("[data-node-id] .lg-slot, [data-node-id] [data-testid^=node-title]");
    const shown = [...names].filter(element => element.innerText.trim());
    return shown.map(element => parseFloat(getComputedStyle(element).fontSize) * scale);
}"""
# Without sizes: Nodes 2.0 fits a node to its pictures whenever it draws them.
SAVED = "() => JSON.stringify(window.app.rootGraph.serialize().nodes.map(({ size, ...node }) => node))"
SEED = """([id, value]) => {
    window.app.graph.getNodeById(Number(id)).widgets.find(widget => widget.name === "seed").value = value;
}"""
BLUEPRINT = """() => {
    const graph = window.app.graph;
    const blueprint = graph.nodes[0];
    const add = (type, values) => {
        const node = window.LiteGraph.createNode(type);
        graph.add(node);
        setValues(node, values);
        return node;
    };
    const setValues = (node, values) => {
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value;
    };
    const link = (source, name) => source.connect(0, blueprint, blueprint.inputs.findIndex(i => i.name === name));
    link(add("UNETLoader", { unet_name: "tinyflux.safetensors" }), "model");
    link(add("EraseAnything_TinyFlux", { text_encoder: "tinyflux_text.safetensors" }), "clip");
    link(add("VAELoader", { vae_name: "tinyflux_vae.safetensors" }), "vae");
    setValues(blueprint, { concept: "star", preset: "quick", prompt: "a red star", seed: 3, width: 96, height: 96 });
    let settings = null;
    for (const [group, values] of Object.entries(SETTINGS)) {
        const node = add("EraseAnything_EraseSettings", { group });
        setValues(node, values);
        if (settings) settings.connect(0, node, node.inputs.findIndex(input => input.name === "settings"));
        settings = node;
    }
    link(settings, "settings");
    const report = add("PreviewAny", {});
    blueprint.connect(blueprint.outputs.findIndex(output => output.name === "report"), report, 0);
    return [String(blueprint.id), String(report.id)];
}"""


def shipped(name: str) -> dict:
    """The file of a workflow."""
    return json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))


def shortened(name: str, canvas, settings: dict, **values) -> dict:
    """A shipped workflow with less to do, in API format; `values` are those of its trainers."""
    graph = ui_to_api(shipped(name), canvas.info)
    graph = with_settings(graph, own_settings(graph, settings) | settings)
    for node in graph.values():
        node["inputs"] |= SHORTENED.get(node["class_type"], {})
        if node["class_type"] == TRAINER:
            node["inputs"] |= values
    # The keys of the added settings are words; the page gives every node a number.
    keys = {key: str(number) for number, key in enumerate(graph, start=1)}
    return {keys[key]: {**node, "inputs": renamed(node["inputs"], keys)} for key, node in graph.items()}


def own_settings(graph: dict, settings: dict) -> dict:
    """What a workflow sets in the groups of these settings: a node of the page has all fields of its group."""
    own = {}
    for node in graph.values():
        fields = node["inputs"]
        if node["class_type"] == SETTINGS and not settings.keys().isdisjoint(GROUPS[fields["group"]]):
            own |= {key.removeprefix("group."): value for key, value in fields.items() if key.startswith("group.")}
    return own


def renamed(inputs: dict, keys: dict[str, str]) -> dict:
    """The inputs of a node with other keys in their links."""
    return {name: [keys[value[0]], value[1]] if isinstance(value, list) else value for name, value in inputs.items()}


def overlapping(nodes: list[dict]) -> list[tuple[str, str]]:
    """The pairs of nodes that lie over each other."""
    pairs = []
    for i, first in enumerate(nodes):
        for second in nodes[:i]:
            x, y, width, height = first["box"]
            left, top, other_width, other_height = second["box"]
            is_beside = x >= left + other_width or left >= x + width
            is_below = y >= top + other_height or top >= y + height
            if not is_beside and not is_below:
                pairs.append((first["type"], second["type"]))
    return pairs


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_readable(canvas, name):
    canvas.open(shipped(name))
    nodes = canvas.page.evaluate(NODES)
    assert len(nodes) == len(shipped(name)["nodes"])
    assert all(node["isKnown"] for node in nodes)
    if name in RUNNABLE:
        assert not any(node["isRed"] for node in nodes)
    assert not overlapping(nodes)
    assert canvas.page.evaluate("() => window.app.canvas.ds.scale") >= 0.6
    sizes = canvas.page.evaluate(TEXT_SIZES, canvas.vue)
    assert sizes and min(sizes) >= SMALLEST_TEXT
    for node in nodes:
        if node["type"] == TRAINER:
            assert 4 <= len(node["widgets"]) <= MOST_WIDGETS


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name not in RUNNABLE])
def test_a_workflow_on_flux_lacks_its_files_and_nothing_else(canvas, name):
    """No node is red, and the server refuses none, but for a file that is not on this machine."""
    graph = ui_to_api(shipped(name), canvas.info)
    lacking = {key for key, node in graph.items() if FLUX_FILES & set(map(str, node["inputs"].values()))}
    canvas.open(shipped(name))
    red = {node["id"] for node in canvas.page.evaluate(NODES) if node["isRed"]}
    assert lacking and red <= lacking
    with pytest.raises(urllib.error.HTTPError) as refused:
        canvas.server.post("/prompt", {"prompt": graph})
    errors = json.loads(refused.value.read())["node_errors"]
    assert set(errors) == lacking
    for entry in errors.values():
        for error in entry["errors"]:
            assert any(f"'{file}'" in error["details"] for file in FLUX_FILES), error


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_workflow_runs_and_shows_its_pictures_and_texts(canvas, name):
    graph = shortened(name, canvas, FEW)
    outputs = canvas.run(graph)
    pictures, texts = 0, 0
    for key, shown in outputs.items():
        canvas.look_at(key)
        if shown.get("images"):
            pictures += 1
            assert canvas.pictures_on(key), graph[key]
        if shown.get("text") and graph[key]["class_type"].startswith("EraseAnything_"):
            texts += 1
            assert canvas.is_on_screen(shown["text"][0].splitlines()[0]), graph[key]
    assert pictures or name == "sample_concepts"
    assert texts or (canvas.vue and name in BEHIND_CACHED)


def test_texts_and_pictures_outlive_another_tab_and_are_not_saved(canvas):
    graph = shortened("tinyflux_erase", canvas, FEW)
    outputs = canvas.run(graph)
    (key,) = (key for key, node in graph.items() if node["class_type"] == TRAINER)
    (text,) = outputs[key]["text"]
    line = text.splitlines()[0]
    saved = canvas.page.evaluate(SAVED)
    canvas.open_new_tab()
    assert canvas.page.get_by_text(line).count() == 0
    canvas.switch_tab(-2)
    canvas.look_at(key)
    assert canvas.is_on_screen(line)
    assert canvas.pictures_on(key)
    assert canvas.page.evaluate(SAVED) == saved and line not in saved
    (trainer,) = (node for node in json.loads(saved) if node["type"] == TRAINER)
    assert trainer["widgets_values"] == ["moon", "quick", graph[key]["inputs"]["output_name"], 0]


def test_a_stopped_run_says_so_and_goes_on(canvas):
    """By the page's own button; what it says outlives another tab as well."""
    name = f"stopped_{'vue' if canvas.vue else 'canvas'}"
    graph = shortened("tinyflux_erase", canvas, MANY, output_name=name, seed=7 + canvas.vue)
    (key,) = (key for key, node in graph.items() if node["class_type"] == TRAINER)
    canvas.open(api_to_ui(graph, canvas.info))
    canvas.look_at(key)
    canvas.press_run()
    assert has_labels(canvas.live_preview(key), LABELS)
    assert canvas.light_share(key) > 0.1
    assert preparation_moves(canvas)
    canvas.page.get_by_role("button", name="Cancel current run").click()
    assert canvas.end()[0] == "execution_interrupted"
    assert canvas.is_on_screen("stopped at ")
    stopped = canvas.text_with("stopped at ").inner_text()
    assert stopped.endswith(" of 60; press Run to go on") and int(stopped.split()[2]) < 60
    canvas.open_new_tab()
    canvas.switch_tab(-2)
    canvas.look_at(key)
    assert canvas.is_on_screen(stopped)
    (text,) = canvas.run_again()[key]["text"]
    assert text.startswith("'moon': trained 60 of 60 steps")
    assert f"went on from step {stopped.split()[2]}" in text.splitlines()
    canvas.look_at(key)
    assert canvas.is_on_screen(text.splitlines()[0])


def has_labels(preview: Image.Image, labels: tuple[str, ...]) -> bool:
    """Whether the pictures at the top of a preview have these labels."""
    drawn = strip(torch.zeros(len(labels), 8, 8, 3), labels)
    shown = preview.resize((drawn.width, round(preview.height * drawn.width / preview.width)))  # the server enlarges it
    box = (0, 0, drawn.width, LABEL_HEIGHT)
    wanted, found = (np.asarray(image.convert("L").crop(box)).ravel() for image in (drawn, shown))
    return np.corrcoef(wanted, found)[0, 1] > 0.95  # JPEG blurs the letters


def preparation_moves(canvas) -> bool:
    """Whether text and bar told of several shares of the preparation."""
    said = [text for text in canvas.page.evaluate("() => window.said") if text.startswith("preparing: ")]
    shares = {re.search(r"\d+%", text)[0] for text in said}
    bars = {tuple(bar) for bar in canvas.page.evaluate("() => window.bars") if bar[1] != MANY["steps"]}
    return len(shares) >= 3 and len(bars) >= 3


def test_a_run_shows_one_picture_and_leaves_no_preview(canvas):
    """In the second run the picture of the first one is there when the previews come."""
    graph = shortened("tinyflux_erase", canvas, FEW, output_name="one_picture", seed=20 + 2 * canvas.vue)
    (key,) = (key for key, node in graph.items() if node["class_type"] == TRAINER)
    canvas.open(api_to_ui(graph, canvas.info))
    canvas.look_at(key)
    for seed in (graph[key]["inputs"]["seed"], graph[key]["inputs"]["seed"] + 1):
        canvas.page.evaluate(SEED, [key, seed])
        canvas.watch_pictures(key)
        (picture,) = canvas.run_again()[key]["images"]
        (shown,) = canvas.pictures_on(key)
        assert picture["filename"] in shown
        assert canvas.most_pictures() == 1
        assert canvas.page.evaluate("() => window.previews") >= 2  # with curves, and before and after


def test_the_search_finds_the_trainer_first(canvas):
    expect = pytest.importorskip("playwright.sync_api").expect
    canvas.open_new_tab()
    for words in SEARCHED:
        expect(canvas.search(OTHER).first).to_contain_text(OTHER, timeout=PATIENCE)
        found = canvas.search(words)
        if words in USED_MORE:
            found = found.filter(has_text="EraseAnything")
        expect(found.first).to_have_text(re.compile(r"^\s*Erase Trainer(?! Batch)"), timeout=PATIENCE)
    canvas.close_search()


def test_the_node_library_finds_the_trainer_first(canvas):
    expect = pytest.importorskip("playwright.sync_api").expect
    canvas.open_new_tab()
    library = canvas.open_library()
    for words in SEARCHED:
        canvas.search_library(OTHER)
        expect(library).not_to_contain_text("Erase Trainer", timeout=PATIENCE)
        canvas.search_library(words)
        first = re.compile(r"EraseAnything\s*training\s*Erase Trainer(?! Batch)")
        expect(library).to_contain_text(first, timeout=PATIENCE)
    canvas.close_library()


@pytest.mark.parametrize("name", blueprints())
def test_a_blueprint_is_found_inserted_and_runs(canvas, name):
    canvas.open_new_tab()
    canvas.search(name).filter(has_text=name).first.click()
    canvas.page.wait_for_function("() => window.app.graph.nodes.length === 1 && window.app.graph.nodes[0].subgraph")
    # The search lies over the canvas until it has faded, and would take the click.
    canvas.page.wait_for_function("() => document.elementFromPoint(400, 300).id === 'graph-canvas'")
    canvas.page.mouse.move(500, 300)  # the node follows the mouse until a click
    canvas.page.mouse.click(400, 300)
    canvas.page.wait_for_function("() => window.app.canvas.state.ghostNodeId == null")
    blueprint, report = canvas.page.evaluate(BLUEPRINT.replace("SETTINGS", json.dumps(page_settings(FEW))))
    canvas.press_run()
    kind, detail = canvas.end()
    assert kind == "execution_success", detail["exception_message"]
    outputs = canvas.server.history(detail["prompt_id"])["outputs"]
    (text,) = outputs[report]["text"]
    assert "'star': trained 4 of 4 steps" in text
    assert sum(bool(shown.get("images")) for shown in outputs.values()) == 3  # the trainer's, before and after
    canvas.open_subgraph(blueprint)
    inner = next(node["id"] for node in canvas.page.evaluate(NODES) if node["type"] == TRAINER)
    canvas.look_at(inner)
    assert canvas.is_on_screen(text.splitlines()[0])


def page_settings(values: dict) -> dict[str, dict]:
    """Settings by group, with the names of the page's widgets."""
    graph = with_settings({"trainer": {"class_type": TRAINER, "inputs": {}}}, values)
    groups = {}
    for node in graph.values():
        if node["class_type"] == SETTINGS:
            groups[node["inputs"]["group"]] = {k: v for k, v in node["inputs"].items() if k.startswith("group.")}
    return groups
