"""One real server: the pack's nodes as a browser sees them, and graphs from the queue to the history."""

import io
import json
import re
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from eraseanything_core.comfy_bridge.architecture import new_flux
from lab.tinyflux import generator
from scripts import erase_settings
from scripts.erase_settings import TRAINER, UNWATCHED, settings_nodes
from scripts.graph import DYNAMIC, api_to_ui, ui_to_api
from scripts.server import GraphError, GraphInterrupted

GOLDEN = Path(__file__).with_name("nodes.golden.json")

PREVIEW = {
    "1": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 48, "height": 32}},
    "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


def sections(inputs: dict, prefix: str = "") -> dict[str, tuple[str, list]]:
    """Section and specification of every input by name, a choice's own as `name.choice.field`."""
    found = {}
    for section in ("required", "optional"):
        for name, spec in inputs.get(section, {}).items():
            found[f"{prefix}{name}"] = (section, spec)
            if spec[0] == DYNAMIC:
                for option in spec[1]["options"]:
                    found |= sections(option["inputs"], f"{prefix}{name}.{option['key']}.")
    return found


def outline(node: dict) -> dict:
    """What a saved workflow depends on: the order of a node's inputs and outputs, by name and type."""
    inputs = {}
    for name, (section, (kind, *_)) in sections(node["input"]).items():
        inputs[name] = f"{section} {kind if isinstance(kind, str) else 'COMBO'}"
    return {"inputs": inputs, "outputs": dict(zip(node["output_name"], node["output"], strict=True))}


def tooltips(node: dict) -> dict[str, str]:
    """The tooltip of every input and output, by name."""
    found = dict(zip(node["output_name"], node.get("output_tooltips") or [None] * len(node["output"]), strict=True))
    for name, (_, spec) in sections(node["input"]).items():
        found[name] = spec[1].get("tooltip") if len(spec) > 1 else None
    return found


def test_the_pack_is_imported(server, pack_nodes):
    assert pack_nodes
    assert "IMPORT FAILED" not in server.log.read_text()


def test_nodes_keep_their_ids_and_the_order_of_their_inputs(pack_nodes, request):
    """Saved workflows hold widget values by position: after a change, --update-golden and the workflows anew."""
    outlines = {name: outline(node) for name, node in sorted(pack_nodes.items())}
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(outlines, indent=2) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert outlines == golden
    assert json.dumps(outlines) == json.dumps(golden), "the order has changed"


def test_the_groups_of_settings_are_those_that_scripts_and_tests_use(pack_nodes):
    options = pack_nodes[erase_settings.SETTINGS]["input"]["required"]["group"][1]["options"]
    assert {option["key"]: tuple(option["inputs"]["optional"]) for option in options} == erase_settings.GROUPS


def test_nodes_explain_themselves(pack_nodes):
    bare = {name for name, node in pack_nodes.items() if not (node["description"] and node["category"])}
    assert not bare, "no description or category"
    silent = [
        f"{name}.{entry}" for name, node in pack_nodes.items() for entry, tip in tooltips(node).items() if not tip
    ]
    assert not silent, "no tooltip"


def test_every_node_has_a_help_page(server, pack_nodes):
    for name, node in pack_nodes.items():
        page = server.get(f"/extensions/eraseanything/docs/{name}.md").decode()
        for path in outline(node)["inputs"]:
            entry = path.split(".")[-1]
            assert re.search(rf"[`*]{entry}[`*]", page), f"the help page of {name} does not mention {entry}"


def test_a_page_that_is_not_there_is_not_served(server):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/extensions/eraseanything/docs/NoSuchNode.md")


def test_a_graph_runs_from_the_queue_to_the_history(server):
    events = []
    entry = server.run(PREVIEW, on_event=lambda kind, data: events.append((kind, data)), timeout=60)
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "execution_start" and kinds[-1] == "execution_success"
    assert [data["node"] for kind, data in events if kind == "executing"] == ["1", "2", "3"]
    finished = [data["nodes"] for kind, data in events if kind == "progress_state"][-1]
    assert {node["state"] for node in finished.values()} == {"finished"} and set(finished) == {"1", "2", "3"}
    executed = [data["output"] for kind, data in events if kind == "executed"]
    assert executed == [entry["outputs"]["3"]]
    assert entry["status"]["status_str"] == "success"
    picture = Image.open(io.BytesIO(server.view(entry["outputs"]["3"]["images"][0])))
    assert picture.size == (48, 32) and picture.convert("L").getextrema() == (127, 127)


def test_a_graph_made_into_a_workflow_runs_the_same(server):
    info = server.object_info()
    graph = ui_to_api(api_to_ui(PREVIEW, info), info)
    entry = server.run(graph, timeout=60)
    assert entry["status"]["status_str"] == "success"
    assert {key: node["inputs"] for key, node in graph.items()} == {key: n["inputs"] for key, n in PREVIEW.items()}


def test_a_graph_that_is_wrong_is_refused_with_the_node_and_the_input(server):
    graph = {**PREVIEW, "1": {"class_type": "SolidMask", "inputs": {"value": 3.0, "width": 48, "height": 32}}}
    with pytest.raises(GraphError, match=r"SolidMask \(node 1\): Value 3.0 bigger than max of 1.0: value"):
        server.queue(graph)


def test_half_a_graph_is_refused_and_not_run(server):
    graph = {**PREVIEW, "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with pytest.raises(GraphError, match=r"PreviewImage \(node 4\)"):
        server.queue(graph)


def test_a_node_that_fails_is_named_with_what_it_said(server):
    graph = {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "../outside"}},
    }
    with pytest.raises(GraphError, match=r"SaveLatent \(node 2\): .*outside the output folder is not allowed"):
        server.run(graph, timeout=60)


def blurs(count: int) -> dict:
    """A graph of many slow nodes, one after the other."""
    graph = {
        "0": {
            "class_type": "EmptyImage",
            "inputs": {"width": 768, "height": 768, "batch_size": 1, "color": 9},
        }
    }
    for number in range(1, count + 1):
        blur = {"image": [str(number - 1), 0], "blur_radius": 15, "sigma": 1.0 + number / count}
        graph[str(number)] = {"class_type": "ImageBlur", "inputs": blur}
    graph["last"] = {"class_type": "PreviewImage", "inputs": {"images": [str(count), 0]}}
    return graph


def test_an_interrupted_graph_stops_in_the_middle_and_the_next_one_runs(server):
    begun = []

    def stop_at_the_third(kind, data):
        if kind == "executing":
            begun.append(data["node"])
            if len(begun) == 3:
                server.interrupt()

    prompt = server.queue(blurs(200))
    with pytest.raises(GraphInterrupted):
        server.wait(prompt, stop_at_the_third, timeout=120)
    assert 3 <= len(begun) < 200
    messages = [kind for kind, _ in server.get_json(f"/history/{prompt}")[prompt]["status"]["messages"]]
    assert messages[-1] == "execution_interrupted"
    assert server.run(PREVIEW, timeout=60)["status"]["completed"]


@pytest.fixture
def random_flux(server):
    """A checkpoint of TinyFlux's shape with random weights, where UNETLoader finds it."""
    torch.manual_seed(0)
    path = server.base / "models" / "diffusion_models" / "random_flux.safetensors"
    state = new_flux(generator.FLUX).state_dict()
    save_file({name: torch.randn_like(tensor) / 50 for name, tensor in state.items()}, path)
    yield path.name
    path.unlink()


def test_a_training_that_is_interrupted_keeps_what_is_trained(server, random_flux):
    small = {"width": 64, "height": 64, "steps": 10000, "sampling_steps": 2, "cached_trajectories": 1}
    settings, link = settings_nodes("settings", small | UNWATCHED)
    trainer = {"concept": "circle", "preset": "balanced", "output_name": "half", "seed": 0, "settings": link}
    graph = {
        **settings,
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": random_flux, "weight_dtype": "default"}},
        "2": {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}},
        "3": {
            "class_type": TRAINER,
            "inputs": {**trainer, "model": ["1", 0], "clip": ["2", 0], "vae": ["4", 0]},
        },
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "tinyflux_vae.safetensors"}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    }
    steps, told, executed = [], [], []

    def stop_at_the_third(kind, data):
        if kind == "progress_text" and data["node"] == "3":
            told.append(data["text"])
        # Before the first step the bar is that of the preparation.
        if kind == "progress" and data["node"] == "3" and data["max"] == small["steps"]:
            steps.append(data["value"])
            if len(steps) == 3:
                server.interrupt()
        if kind == "executing":
            executed.append(data["node"])

    with pytest.raises(GraphInterrupted):
        server.run(graph, stop_at_the_third, timeout=300)
    assert "3" in executed and "5" not in executed, "nothing behind the trainer runs"
    assert steps == sorted(steps) and steps[-1] < small["steps"]
    (second,) = [text for text in told if text.startswith("step 2 of ")]
    assert re.fullmatch(r"step 2 of 10000, [\d.]+ (s|min|h) left: (\w+ [\d.]+, )+loss [\d.]+", second)
    assert re.match(r"estimated peak [\d.]+ GiB of [\d.]+ GiB free; blocks are kept for backward", told[0])
    assert re.fullmatch(r"stopped at \d+ of 10000; press Run to go on", told[-1])
    assert (server.base / "models" / "loras" / "half.safetensors").is_file()


def test_a_method_is_chosen_in_the_settings(server, random_flux):
    """A choice within a choice: its fields reach the trainer, and the file names the method."""
    small = {"width": 64, "height": 64, "steps": 2, "sampling_steps": 2, "cached_trajectories": 1}
    chosen = {"method": "ESD", "method.variant": "x", "meta_weight": 0.0}
    settings, link = settings_nodes("settings", small | UNWATCHED | chosen)
    trainer = {"concept": "circle", "preset": "balanced", "output_name": "by_esd", "seed": 0, "settings": link}
    graph = {
        **settings,
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": random_flux, "weight_dtype": "default"}},
        "2": {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}},
        "3": {"class_type": TRAINER, "inputs": {**trainer, "model": ["1", 0], "clip": ["2", 0], "vae": ["4", 0]}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "tinyflux_vae.safetensors"}},
    }
    assert graph["settings method"]["inputs"]["group.method.variant"] == "x"
    entry = server.run(graph, timeout=300)
    (name,) = entry["outputs"]["3"]["lora"]
    with safe_open(server.base / "models" / "loras" / name, "pt") as file:
        header, keys = file.metadata(), list(file.keys())
    assert header["eraseanything.method"] == "esd" and json.loads(header["eraseanything.retain_weight"]) == 0
    assert json.loads(header["eraseanything.method_settings"]) == [["variant", "x"]]
    assert any(".single_transformer_blocks." in key for key in keys), "x is all of the attention"
