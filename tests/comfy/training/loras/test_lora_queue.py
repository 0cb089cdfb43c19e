"""The LoRA nodes through the queue of a real server, with files that are chosen from its lists."""

import pytest
import torch
from safetensors import safe_open

from eraseanything_core.lora.files import save_lora
from scripts.server import GraphError
from tests.comfy.training.loras.cases import chosen

KEY = "transformer.transformer_blocks.0.attn.add_k_proj.lora_{}.weight"
SETTINGS = {"weights": "1", "mode": "sum", "prompt": "", "preserve": "", "concepts": ""}
NUMBERS = {"rank": 0, "energy": 0.99, "density": 0.5, "seed": 0}


@pytest.fixture
def names(server):
    """Two erasers of TinyFlux, one of them in a sub-folder."""
    loras = server.base / "models" / "loras"
    (loras / "people").mkdir(parents=True, exist_ok=True)
    tensors = {KEY.format("A"): torch.ones(2, 256), KEY.format("B"): torch.full((256, 2), 0.01)}
    for concept, folder in (("star", loras), ("anna", loras / "people")):
        save_lora(tensors, folder / f"{concept}.safetensors", {"eraseanything.concept": concept})
    return ("star.safetensors", "people/anna.safetensors")


def graph(node, **inputs):
    loader = {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}
    return {
        "model": {"class_type": "UNETLoader", "inputs": loader},
        "node": {"class_type": f"EraseAnything_{node}", "inputs": {"model": ["model", 0], **inputs}},
    }


def test_files_alone_are_combined(server, names):
    """No LoRA is linked, and one file is in a sub-folder."""
    asked = graph("MultiEraseLoRA", **chosen(names[0], (names[1], 0.5)), **SETTINGS, **NUMBERS)
    told = server.run(asked, timeout=300)["outputs"]["node"]["text"][0]
    assert told.startswith("2 erasers by sum: 1 linears")
    assert "star.safetensors: weight 1\npeople/anna.safetensors: weight 0.5" in told


def test_a_file_that_is_not_there_is_refused_before_anything_runs(server, names):
    asked = graph("MultiEraseLoRA", **chosen("gone.safetensors"), **SETTINGS, **NUMBERS)
    with pytest.raises(GraphError, match="gone.safetensors"):
        server.run(asked, timeout=300)


def test_an_erased_model_is_saved_and_listed(server, names):
    asked = graph("ExportCheckpoint", file=names[1], strength=1.0, output_name="served/tiny_erased")
    told = server.run(asked, timeout=300)["outputs"]["node"]["text"][0]
    path = server.base / "models" / "diffusion_models" / "served" / "tiny_erased.safetensors"
    assert f"saved {path}" in told and "has the eraser of anna in its weights, at strength 1" in told
    loader = server.object_info()["UNETLoader"]["input"]["required"]["unet_name"]
    assert "served/tiny_erased.safetensors" in loader[0]
    with safe_open(path, "pt") as file:
        assert file.metadata()["eraseanything.concepts"] == '["anna"]'
    path.unlink()
