"""The workflows that a person opens from the template browser."""

import json
import re
from pathlib import Path

import pytest

from scripts.graph import NOTES, ui_to_api

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))

pytestmark = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture
def workflow(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_is_among_the_templates_with_a_thumbnail(server, path):
    assert path.stem in server.get_json("/api/workflow_templates")["eraseanything"]
    assert json.loads(server.get(f"/api/workflow_templates/eraseanything/{path.name}"))["version"] == 0.4
    thumbnail = server.get(f"/api/workflow_templates/eraseanything/{path.stem}.jpg")
    assert thumbnail.startswith(b"\xff\xd8\xff"), "not a JPEG"


def test_its_thumbnail_is_its_own(path):
    others = [other for other in path.parent.glob("*.jpg") if other.stem != path.stem]
    assert path.with_suffix(".jpg").read_bytes() not in [other.read_bytes() for other in others]


def test_its_nodes_are_of_comfyui_or_of_the_pack(server, workflow):
    info = server.object_info()
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            module = info[node["type"]]["python_module"]
            assert module.startswith(("nodes", "comfy_extras.")) or module == "custom_nodes.eraseanything", node["type"]


def test_every_input_that_is_required_is_given(server, workflow):
    info = server.object_info()
    for node in ui_to_api(workflow, info).values():
        required = info[node["class_type"]]["input_order"].get("required", [])
        assert set(required) <= set(node["inputs"]), node["class_type"]


def test_its_links_join_slots_of_one_type(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["links"]
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and entry["link"] == link
        assert kind == output["type"] and (entry["type"] in (kind, "*"))


def test_it_holds_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r'"(/|[A-Za-z]:\\|~)[\w/\\]{2,}', text)
