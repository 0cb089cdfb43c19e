"""Trainings in a real server's queue: back to back, beside a sampling, after a dropped cache, and under SIGTERM."""

import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.lora.files import load_lora
from lab.tinyflux import generator
from scripts.erase_settings import TRAINER, UNWATCHED, settings_nodes
from scripts.server import ComfyServer
from tests.comfy.conftest import BASE, COMFYUI

SMALL = {
    "width": 64,
    "height": 64,
    "steps": 3,
    "sampling_steps": 2,
    "cached_trajectories": 1,
    "save_every": 1,
    **UNWATCHED,
}


@pytest.fixture(scope="module")
def model_name():
    """A checkpoint of TinyFlux's shape with random weights, where UNETLoader finds it."""
    torch.manual_seed(0)
    path = BASE / "models" / "diffusion_models" / "random_queue.safetensors"
    state = new_flux(generator.FLUX).state_dict()
    save_file({name: torch.randn_like(tensor) / 50 for name, tensor in state.items()}, path)
    yield path.name
    path.unlink()


@pytest.fixture
def graph(model_name):
    """A training, and beside it a sampling with the same model."""

    def made(output_name="queued", seed=0, **change) -> dict:
        settings, link = settings_nodes("settings", SMALL | change)
        trainer = {"concept": "circle", "preset": "balanced", "output_name": output_name, "seed": seed}
        trainer |= {"model": ["1", 0], "clip": ["2", 0], "vae": ["8", 0], "settings": link}
        sampler = {
            "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            "model": ["1", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["5", 0],
        }  # fmt: skip
        return settings | {
            "1": {"class_type": "UNETLoader", "inputs": {"unet_name": model_name, "weight_dtype": "default"}},
            "2": {"class_type": "EraseAnything_TinyFlux", "inputs": {"text_encoder": "tinyflux_text.safetensors"}},
            "3": {"class_type": TRAINER, "inputs": trainer},
            "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a circle", "clip": ["2", 0]}},
            "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "6": {"class_type": "KSampler", "inputs": sampler},
            "7": {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0], "filename_prefix": "queued"}},
            "8": {"class_type": "VAELoader", "inputs": {"vae_name": "tinyflux_vae.safetensors"}},
        }

    return made


def written(entry: dict) -> dict:
    return load_lora(BASE / "models" / "loras" / entry["outputs"]["3"]["lora"][0])[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_trainings_and_samplings_in_one_queue(server, graph):
    """Two trainings back to back, each with a sampling in its graph, then one again with its cache dropped."""
    first, second = graph(), graph(seed=1)
    queued = [server.queue(g) for g in (first, second)]
    entries = [server.wait(prompt, timeout=300) for prompt in queued]
    server.post("/free", {"unload_models": True, "free_memory": True})
    entries.append(server.run(first, timeout=300))
    names = [entry["outputs"]["3"]["lora"][0] for entry in entries]
    assert names == ["queued.safetensors", "queued_2.safetensors", "queued_3.safetensors"]
    one, other, again = map(written, entries)
    assert same(one, again) and not same(one, other)
    latents = [(BASE / "output" / e["outputs"]["7"]["latents"][0]["filename"]).read_bytes() for e in entries]
    assert len({latent[-4096:] for latent in latents}) == 1, "the sampled MODEL is as it was"


@pytest.fixture
def one_after_the_other(server):
    """Queues a graph when another one has done its second step; the entries of both."""

    def run(first: dict, second: dict, node: str) -> tuple[dict, dict]:
        queued = [server.queue(first)]

        def at_the_second_step(kind, data):
            if len(queued) == 1 and kind == "progress" and data["node"] == node and data["value"] >= 2:
                assert data["max"] > 2
                queued.append(server.queue(second))
                at = server.get_json("/queue")
                assert [[entry[1] for entry in at[f"queue_{state}"]] for state in ("running", "pending")] == [
                    [prompt] for prompt in queued
                ]

        return server.wait(queued[0], at_the_second_step, timeout=300), server.wait(queued[1], timeout=300)

    return run


def test_a_training_queued_while_a_sampling_runs_and_the_reverse(server, graph, one_after_the_other):
    """Over HTTP, with one model: in both orders the same LoRA and the same latent."""
    found = []
    for training_first in (False, True):
        # Names of its own: ComfyUI may take up the next prompt before it has dropped its cache, and run nothing.
        whole = graph(f"beside_{training_first}", steps=20)
        whole["6"]["inputs"]["steps"] = 100
        training = {key: node for key, node in whole.items() if key not in ("4", "5", "6", "7")}
        sampling = {key: node for key, node in whole.items() if key != "3"}
        server.post("/free", {"unload_models": True, "free_memory": True})
        if training_first:
            trained, sampled = one_after_the_other(training, sampling, "3")
        else:
            sampled, trained = one_after_the_other(sampling, training, "6")
        latent = BASE / "output" / sampled["outputs"]["7"]["latents"][0]["filename"]
        found.append((written(trained), load_file(latent)["latent_tensor"]))
    assert same(found[0][0], found[1][0]) and any(t.abs().max() > 0 for k, t in found[0][0].items() if "lora_B" in k)
    assert torch.equal(found[0][1], found[1][1]) and found[0][1].std() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_a_server_that_is_told_to_end_keeps_the_training(graph):
    with ComfyServer(COMFYUI, BASE, BASE / "sigterm.log") as server:
        server.queue(graph("told", steps=100000, save_every=0))
        state = BASE / "output" / "eraseanything" / "told"
        until = time.monotonic() + 120
        while not list(state.glob("pools-*")) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=200) == -signal.SIGTERM
    tensors = load_lora(BASE / "models" / "loras" / "told.safetensors")[0]
    assert any(t.abs().max() > 0 for k, t in tensors.items() if "lora_B" in k)
    assert Path(state / "state.safetensors").is_file()
