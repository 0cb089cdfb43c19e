"""The workflows that a person opens from the template browser."""

import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from scripts.graph import NOTES, shown_inputs, ui_to_api
from scripts.workflows import cards, flux
from scripts.workflows.__main__ import CARDS, templates

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))

# The FLUX.1 ones need weights that no test has: what they hold is checked against /object_info instead.
NEEDS_FLUX = "flux_"
RUNNABLE = [path for path in WORKFLOWS if not path.stem.startswith(NEEDS_FLUX)]
MODEL_FILE = ".safetensors"

every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
runnable = pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)


@pytest.fixture
def workflow(path):
    return json.loads(path.read_text(encoding="utf-8"))


@every
def test_it_is_among_the_templates_with_a_thumbnail(server, path):
    assert path.stem in server.get_json("/api/workflow_templates")["eraseanything"]
    assert json.loads(server.get(f"/api/workflow_templates/eraseanything/{path.name}"))["version"] == 0.4
    thumbnail = server.get(f"/api/workflow_templates/eraseanything/{path.stem}.jpg")
    assert thumbnail.startswith(b"\xff\xd8\xff"), "not a JPEG"


@every
def test_its_thumbnail_is_its_own(path):
    others = [other for other in path.parent.glob("*.jpg") if other.stem != path.stem]
    assert path.with_suffix(".jpg").read_bytes() not in [other.read_bytes() for other in others]


def test_every_card_has_a_title_and_a_sentence_and_shows_them():
    """Also those that are drawn by running the workflow: their foot is the band with both."""
    names = {path.stem for path in WORKFLOWS}
    assert set(CARDS) == set(templates()) == names
    plain = Image.new("RGB", (cards.SIDE, cards.SIDE), "red")
    for path in WORKFLOWS:
        title, sentence = CARDS[path.stem]
        assert title and sentence.endswith(".") and len(sentence) < 80
        card = Image.open(path.with_suffix(".jpg")).convert("RGB")
        assert card.size == plain.size
        if path.stem not in flux.CARDS:
            foot = (0, cards.SIDE - cards.BAND, cards.SIDE, cards.SIDE)
            wanted = cards.captioned(plain, title, sentence).crop(foot)
            difference = ImageStat.Stat(ImageChops.difference(card.crop(foot), wanted))
            assert max(difference.mean) < 8, path.stem


def test_the_first_template_is_the_one_that_erases_with_flux():
    """ComfyUI lists them by name."""
    assert WORKFLOWS[0].stem == "flux_1_erase"


@every
def test_its_nodes_are_of_comfyui_or_of_the_pack(server, workflow):
    info = server.object_info()
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            module = info[node["type"]]["python_module"]
            assert module.startswith(("nodes", "comfy_extras.")) or module == "custom_nodes.eraseanything", node["type"]


@every
def test_every_input_that_is_required_is_given(server, workflow):
    info = server.object_info()
    for node in ui_to_api(workflow, info).values():
        required = info[node["class_type"]]["input_order"].get("required", [])
        assert set(required) <= set(node["inputs"]), node["class_type"]


@every
def test_its_links_join_slots_of_one_type(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["links"]
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and entry["link"] == link
        assert kind == output["type"] and (entry["type"] in (kind, "*"))


@every
def test_it_holds_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'"(/|[A-Za-z]:\\|~)[\w/\\]{2,}', text)


@every
def test_every_value_is_one_that_its_node_takes(server, workflow):
    """But for the files of models, which a machine may not have."""
    info = server.object_info()
    for node in ui_to_api(workflow, info).values():
        for entry in shown_inputs(node["class_type"], info, node["inputs"]):
            value = node["inputs"].get(entry.name)
            if entry.kind == "COMBO" and not isinstance(value, list) and not str(value).endswith(MODEL_FILE):
                assert value in entry.options["options"], (node["class_type"], entry.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                low = entry.options.get("min", value)
                high = entry.options.get("max", value)
                assert low <= value <= high, (node["class_type"], entry.name)


@every
def test_it_has_groups_with_titles_and_a_note(workflow):
    assert workflow["groups"] and all(group["title"] for group in workflow["groups"])
    (note,) = (node for node in workflow["nodes"] if node["type"] in NOTES)
    assert "press Run" in note["widgets_values"][0] or "Press Run" in note["widgets_values"][0]
    for node in workflow["nodes"]:
        if node is not note:
            assert any(inside(node, group["bounding"]) for group in workflow["groups"]), node["type"]


def inside(node: dict, frame: list) -> bool:
    x, y = node["pos"]
    width, height = node["size"]
    return frame[0] <= x <= frame[0] + frame[2] - width and frame[1] <= y <= frame[1] + frame[3] - height


@every
def test_its_note_names_every_model_file(path, workflow):
    (note,) = (node for node in workflow["nodes"] if node["type"] in NOTES)
    for node in workflow["nodes"]:
        if node["type"] in ("UNETLoader", "DualCLIPLoader", "VAELoader", "EraseAnything_TinyFlux"):
            for value in node["widgets_values"]:
                assert not str(value).endswith(MODEL_FILE) or value in note["widgets_values"][0], value


def chained_settings(graph: dict, key: str) -> list[dict]:
    """The groups of the settings nodes in front of a node, the first one of the chain first."""
    link = graph[key]["inputs"].get("settings")
    if link is None:
        return []
    group: dict = {}
    for name, value in graph[link[0]]["inputs"].items():
        path = name.split(".")
        if path[0] == "group":
            # The method is a choice in the group: `group.method` holds itself, beside `group.method.target`.
            inner = group.setdefault("method", {}) if "method" in path else group
            inner[path[-1]] = value
    return [*chained_settings(graph, link[0]), group]


@every
def test_every_trainer_can_work_with_its_settings(server, pack, workflow):
    """A group counts as a whole, also over the method that another group has chosen."""
    from pack_under_test.eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
    from pack_under_test.eraseanything_core.erasers.registry import method_of
    from pack_under_test.eraseanything_core.training.config import check_settings
    from pack_under_test.nodes.train import trainer_config

    graph = ui_to_api(workflow, server.object_info())
    for key, node in graph.items():
        if node["class_type"] != "EraseAnything_EraseTrainer":
            continue
        settings: dict = {}
        for group in chained_settings(graph, key):
            settings = pack["EraseAnything_EraseSettings"].execute(group, settings).args[0]
        words = sample_offline(ConceptRequest(node["inputs"]["concept"]))
        config = trainer_config(words, node["inputs"]["preset"], settings, 0)
        check_settings(config)
        assert method_of(config).name == settings.get("method", "eraseanything")


@runnable
def test_the_server_takes_it(server, workflow):
    """The graph passes ComfyUI's own validation, model files included; it is not run to its end here."""
    prompt_id = server.queue(ui_to_api(workflow, server.object_info()))
    server.post("/queue", {"delete": [prompt_id]})
    server.post("/interrupt", {"prompt_id": prompt_id})
    while any(server.get_json("/queue").values()):
        time.sleep(0.1)
