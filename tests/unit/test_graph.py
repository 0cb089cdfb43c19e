import copy
import json

import pytest

from scripts.graph import WorkflowError, api_to_ui, main, ui_to_api

NODES = {
    "Load": {
        "input": {"required": {"file": [["a.safetensors", "b.safetensors"]]}},
        "input_order": {"required": ["file"]},
        "output": ["MODEL", "CLIP"],
        "output_name": ["model", "clip"],
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["euler", "heun"]}],
            },
            "optional": {"text": ["STRING", {"forceInput": True}], "strength": ["FLOAT", {"default": 1.0}]},
            "hidden": {"prompt": "PROMPT"},
        },
        "input_order": {"required": ["model", "seed", "steps", "sampler"], "optional": ["text", "strength"]},
        "output": ["LATENT"],
        "output_name": ["latent"],
    },
    "Train": {
        "input": {"required": {"clip": ["CLIP"], "seed": ["INT", {"default": 7, "control_after_generate": False}]}},
        "input_order": {"required": ["clip", "seed"]},
        "output": ["INT"],
        "output_name": ["steps"],
    },
    "Preview": {
        "input": {"required": {"latent": ["LATENT"]}},
        "input_order": {"required": ["latent"]},
        "output": [],
        "output_name": [],
        "output_node": True,
    },
}

GRAPH = {
    "1": {"class_type": "Load", "inputs": {"file": "b.safetensors"}, "_meta": {"title": "The model"}},
    "2": {"class_type": "Train", "inputs": {"clip": ["1", 1], "seed": 3}, "_meta": {"title": "Train"}},
    "3": {
        "class_type": "Sample",
        "inputs": {"model": ["1", 0], "seed": 5, "steps": ["2", 0], "sampler": "heun", "strength": 0.5},
        "_meta": {"title": "Sample"},
    },
    "9": {"class_type": "Preview", "inputs": {"latent": ["3", 0]}, "_meta": {"title": "Preview"}},
}


CHOOSE = {
    "input": {
        "required": {
            "group": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "none", "inputs": {"required": {}}},
                        {
                            "key": "size",
                            "inputs": {
                                "required": {"seed": ["INT", {"default": 3}], "width": ["INT", {"default": 64}]},
                                "optional": {"mask": ["MASK", {}]},
                            },
                        },
                    ]
                },
            ],
            "name": ["STRING", {"default": "x"}],
        },
    },
    "input_order": {"required": ["group", "name"]},
    "output": ["MASK"],
    "output_name": ["mask"],
}


def workflow() -> dict:
    return api_to_ui(GRAPH, NODES)


def node(workflow: dict, kind: str) -> dict:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def test_a_graph_survives_the_way_to_a_workflow_and_back():
    assert ui_to_api(workflow(), NODES) == GRAPH


def test_widget_values_follow_the_schema_with_the_control_of_a_seed_where_the_frontend_has_one():
    assert node(workflow(), "Sample")["widgets_values"] == [5, "fixed", 20, "heun", 0.5]
    assert node(workflow(), "Train")["widgets_values"] == [3]


def test_the_widgets_that_a_choice_adds_follow_it():
    graph = {
        "1": {"class_type": "Choose", "inputs": {"group": "none", "name": "first"}, "_meta": {"title": "Choose"}},
        "2": {
            "class_type": "Choose",
            "inputs": {"group": "size", "group.seed": 5, "group.width": 32, "group.mask": ["1", 0], "name": "second"},
            "_meta": {"title": "Choose"},
        },
    }
    nodes = {"Choose": CHOOSE}
    made = api_to_ui(graph, nodes)
    assert [node["widgets_values"] for node in made["nodes"]] == [["none", "first"], ["size", 5, 32, "second"]]
    assert ui_to_api(made, nodes) == graph
    made["nodes"][1]["widgets_values"][0] = "colour"
    with pytest.raises(WorkflowError, match="group has no choice 'colour'"):
        ui_to_api(made, nodes)


def test_a_choice_inside_of_a_choice_has_its_own_widgets_after_it():
    """As the method in Erase Settings, which is in one of its groups."""
    nodes = {"Choose": copy.deepcopy(CHOOSE)}
    ((_, options),) = [nodes["Choose"]["input"]["required"]["group"]]
    size = options["options"][1]["inputs"]
    size["required"]["inner"] = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "deep", "inputs": {
        "optional": {"rate": ["FLOAT", {"default": 0.5}]}}}]}]  # fmt: skip
    inputs = {"group": "size", "group.seed": 5, "group.width": 32, "group.inner": "deep", "group.inner.rate": 0.25}
    graph = {"1": {"class_type": "Choose", "inputs": inputs | {"name": "x"}, "_meta": {"title": "Choose"}}}
    made = api_to_ui(graph, nodes)
    assert made["nodes"][0]["widgets_values"] == ["size", 5, 32, "deep", 0.25, "x"]
    assert ui_to_api(made, nodes) == graph


def test_links_agree_with_the_slots_at_both_ends():
    made = workflow()
    nodes = {node["id"]: node for node in made["nodes"]}
    assert len(made["links"]) == made["last_link_id"] == 4
    for link, source, source_slot, target, target_slot, kind in made["links"]:
        assert link in nodes[source]["outputs"][source_slot]["links"]
        assert nodes[target]["inputs"][target_slot]["link"] == link
        assert nodes[source]["outputs"][source_slot]["type"] == kind
    slots = [slot["link"] for node in made["nodes"] for slot in node["inputs"] if slot["link"]]
    assert sorted(slots) == [link[0] for link in made["links"]]


def test_a_linked_widget_keeps_its_slot_and_its_place_among_the_values():
    slot = node(workflow(), "Sample")["inputs"][-1]
    assert slot["name"] == "steps" and slot["widget"] == {"name": "steps"}


def test_nodes_stand_right_of_what_they_need_and_do_not_overlap():
    made = workflow()
    nodes = {node["id"]: node for node in made["nodes"]}
    for _, source, _, target, *_ in made["links"]:
        assert nodes[source]["pos"][0] + nodes[source]["size"][0] < nodes[target]["pos"][0]
        assert nodes[source]["order"] < nodes[target]["order"]
    moved = api_to_ui(GRAPH, NODES, {"9": (1, 2)})
    assert node(moved, "Preview")["pos"] == [1, 2]


def test_an_output_node_has_room_for_what_it_shows():
    assert node(workflow(), "Preview")["size"][1] > node(workflow(), "Load")["size"][1] + 200


def test_two_nodes_of_one_column_stand_below_each_other():
    graph = {"1": GRAPH["1"], "2": copy.deepcopy(GRAPH["1"])}
    first, second = api_to_ui(graph, NODES)["nodes"]
    assert second["pos"][1] > first["pos"][1] + first["size"][1]


def test_names_instead_of_numbers_become_numbers():
    graph = {
        "model": GRAPH["1"],
        "train": {"class_type": "Train", "inputs": {"clip": ["model", 1], "seed": 3}},
    }
    assert ui_to_api(api_to_ui(graph, NODES), NODES)["2"]["inputs"] == {"clip": ["1", 1], "seed": 3}


def test_muted_nodes_and_notes_are_left_out():
    made = workflow()
    node(made, "Train")["mode"] = 2
    made["nodes"].append({"id": 50, "type": "MarkdownNote", "widgets_values": ["hello"]})
    graph = ui_to_api(made, NODES)
    assert set(graph) == {"1", "3", "9"}
    assert graph["3"]["inputs"]["steps"] == 20


def wrong_type(made):
    node(made, "Train")["type"] = "Gone"


def one_value_missing(made):
    node(made, "Sample")["widgets_values"].pop()


def bypassed(made):
    node(made, "Train")["mode"] = 4


@pytest.mark.parametrize(
    "change, message",
    [
        (wrong_type, "the server has no node 'Gone'"),
        (
            one_value_missing,
            r"Sample \(node 3\) has 4 widget values where 5 fit \(seed, steps, sampler, strength\)",
        ),
        (bypassed, r"Train \(node 2\) is bypassed"),
    ],
)
def test_a_workflow_that_does_not_fit_says_why(change, message):
    made = workflow()
    change(made)
    with pytest.raises(WorkflowError, match=message):
        ui_to_api(made, NODES)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"latent": ["3", 1]}, r"Preview.latent \(node 9\): \['3', 1\] is no output"),
        ({"latent": ["77", 0]}, "is no output of a node"),
        ({"image": 1}, r"Preview \(node 9\) has no input image"),
    ],
)
def test_a_graph_that_does_not_fit_says_why(inputs, message):
    graph = {**GRAPH, "9": {"class_type": "Preview", "inputs": inputs}}
    with pytest.raises(WorkflowError, match=message):
        api_to_ui(graph, NODES)


def test_a_loop_is_refused():
    nodes = {"A": {"input": {"required": {"x": ["X"]}}, "input_order": {"required": ["x"]}}}
    nodes["A"].update(output=["X"], output_name=["x"])
    graph = {key: {"class_type": "A", "inputs": {"x": [other, 0]}} for key, other in ("12", "21")}
    with pytest.raises(WorkflowError, match="loop"):
        api_to_ui(graph, nodes)


def test_the_command_converts_files(tmp_path):
    nodes, graph, made, back = (tmp_path / name for name in ("nodes.json", "graph.json", "made.json", "back.json"))
    nodes.write_text(json.dumps(NODES))
    graph.write_text(json.dumps(GRAPH))
    main("to-ui", str(graph), str(made), str(nodes))
    main("to-api", str(made), str(back), str(nodes))
    assert json.loads(back.read_text()) == GRAPH
