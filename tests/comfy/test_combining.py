"""The example graphs of MultiEraseLoRA and EraseStrength through the queue, with short training."""

import json
from pathlib import Path

import pytest

from eraseanything_core.lora.files import load_lora
from scripts.erase_settings import TRAINER, UNWATCHED, with_settings
from scripts.graph import ui_to_api

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
TRAINING = {"steps": 1, "sampling_steps": 2, "cached_trajectories": 1, "batch_size": 1, "retain_batch_size": 1}
TRAINING |= UNWATCHED
SHORT = {
    "EraseAnything_EraseStrength": {"images": 2},
    "EmptySD3LatentImage": {"batch_size": 1},
    "KSampler": {"steps": 2},
}


@pytest.fixture
def run(server):
    def queued(name):
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text())
        graph = with_settings(ui_to_api(workflow, server.object_info()), TRAINING)
        for node in graph.values():
            node["inputs"] |= SHORT.get(node["class_type"], {})
            if node["class_type"] == TRAINER:
                node["inputs"]["output_name"] = f"short_{node['inputs']['concept']}"
        entry = server.run(graph, timeout=600)
        kinds = {key: node["class_type"].removeprefix("EraseAnything_") for key, node in graph.items()}
        return [(kinds[key], out) for key, out in entry["outputs"].items()]

    return queued


def test_two_erasers_become_one_file(server, run):
    shown = dict(run("tinyflux_combine"))
    told = shown["MultiEraseLoRA"]["text"][0]
    assert told.startswith("2 erasers by prompt-gated: 4 linears, rank 16")
    saved, header = load_lora(server.base / "models" / "loras" / "tinyflux_without_moon_and_fish.safetensors")
    assert len(saved) == 8 and json.loads(header["eraseanything.concepts"]) == ["moon", "fish"]
    assert header["eraseanything.method"] == "combined by concatenate"


def test_a_dial_is_measured_and_applied(run, monkeypatch):
    monkeypatch.setitem(TRAINING, "lr_low", 1.0)  # one step spoils the concept: there is an effect to divide
    told = [out["text"][0] for kind, out in run("tinyflux_strength") if kind == "EraseStrength"]
    scales = [float(text.split()[6]) for text in sorted(told)]
    assert len(scales) == 3 and 0 < scales[0] < 1 and scales[1:] == [1.0, 1.0]
