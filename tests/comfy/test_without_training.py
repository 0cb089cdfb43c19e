"""Erase Now and Erase at Sampling in a real server's queue, on TinyFlux."""

import re

import pytest
from safetensors import safe_open

MODEL = {"class_type": "UNETLoader", "inputs": {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}}
CLIP = {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}}


def sampled(model: list, text: str) -> dict:
    """A picture of two steps, saved as a latent."""
    sampler = {
        "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "model": model, "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0],
    }  # fmt: skip
    return {
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["clip", 0]}},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 2}},
        "sample": {"class_type": "KSampler", "inputs": sampler},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "without"}},
    }


def pack_node(name: str, **inputs) -> dict:
    return {"class_type": f"EraseAnything_{name}", "inputs": inputs}


def test_erase_now_gives_a_file_that_says_how_it_was_made(server):
    graph = {
        "model": MODEL,
        "clip": CLIP,
        "now": pack_node(
            "EraseNow", model=["model", 0], clip=["clip", 0], concept="star", method="UCE", rank=0, seed=0
        ),
        "file": pack_node("SaveEraseLoRA", lora=["now", 1], output_name="star_now"),
        **sampled(["now", 0], "a red star"),
    }
    outputs = server.run(graph, timeout=300)["outputs"]
    (report,) = outputs["now"]["text"]
    assert report.startswith("star by UCE\n2 linears from ")
    assert "exact; the text is" in report and "pictures were not looked at" in report
    (saved,) = outputs["file"]["text"]
    path = server.base / "models" / "loras" / saved.removeprefix("saved ")
    with safe_open(path, "pt") as file:
        header = file.metadata()
        assert len(file.keys()) == 4
    assert header["eraseanything.method"] == "UCE in closed form" and header["eraseanything.concept"] == "star"


@pytest.mark.parametrize("prompt, acts", [("a photo of a star", True), ("a blue house", False)])
def test_erase_at_sampling_says_after_a_sampling_what_it_did(server, prompt, acts):
    values = {"concept": "star", "threshold": 0.5, "strength": 1.5, "end": 1.0}
    graph = {
        "model": MODEL,
        "clip": CLIP,
        "erase": pack_node("EraseAtSampling", model=["model", 0], clip=["clip", 0], **values),
        **sampled(["erase", 0], prompt),
    }
    told = []

    def listen(kind, data):
        if kind == "progress_text" and data["node"] == "erase":
            told.append(data["text"])

    outputs = server.run(graph, listen, timeout=300)["outputs"]
    assert outputs["save"]["latents"]
    found = re.search(r"star: present up to (.+), (.+)\. It was taken off in (\d) of 2 steps", told[-1])
    assert found, told
    assert (int(found[3]) > 0) == acts
