"""The gradient wherever the weights lie: on the card, in part or not at all, under both allocators."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as management
import torch
from comfy.cli_args import args
from safetensors.torch import load_file, save_file
from torch import Tensor

from eraseanything_core.comfy_bridge.training_session import training_session
from lab.gpu.card import Card, find_card
from lab.gpu.free_memory import told_free
from lab.gpu.gradients import compare, gradients
from lab.gpu.outcome import Outcome
from lab.gpu.small_model import load, random_flux

COSINE = 0.9999
ALLOCATORS = ("native", "cudaMallocAsync")
VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"


@contextmanager
def vram_state(state: management.VRAMState) -> Iterator[None]:
    """ComfyUI as with --novram and its like."""
    before = management.vram_state
    management.vram_state = state
    try:
        yield
    finally:
        management.vram_state = before


def without_vram(patcher: Any) -> AbstractContextManager[None]:
    """ComfyUI as with --novram."""
    return vram_state(management.VRAMState.NO_VRAM)


@contextmanager
def with_half(patcher: Any) -> Iterator[None]:
    """ComfyUI as on a card that has room for half of the weights."""
    ratio = management.MIN_WEIGHT_MEMORY_RATIO
    # Not 0 on AMD and Intel: there ComfyUI loads all of a small model however little is free.
    management.MIN_WEIGHT_MEMORY_RATIO = 0.0
    # Said to be free and not made free: half of this small model is less than other programs take and give back.
    room = int(management.minimum_inference_memory()) + patcher.model_size() // 2
    try:
        with vram_state(management.VRAMState.NORMAL_VRAM), told_free(room):
            yield
    finally:
        management.MIN_WEIGHT_MEMORY_RATIO = ratio


class Place(NamedTuple):
    """Where ComfyUI leaves the weights: the state that makes it so, and the share of them that is then on the card."""

    made: Callable[[Any], AbstractContextManager[None]]
    least: float
    most: float


PLACES = {"half": Place(with_half, 0.25, 0.75), "--novram": Place(without_vram, 0.0, 0.1)}


def gradient(patcher: Any, recompute: bool = False) -> tuple[dict[str, Tensor], int]:
    """Gradients in bfloat16, and the bytes of weights that ComfyUI has on the card."""
    management.unload_all_models()
    with training_session(patcher, torch.bfloat16, recompute) as model:
        return gradients(model), patcher.loaded_size()


def compare_places(outcome: Outcome, patcher: Any, resident: dict[str, Tensor], card: str = "") -> None:
    """Weights in main memory, half of them and all, blocks kept and recomputed, against the resident weights."""
    for place, (made, least, most) in PLACES.items():
        for recompute in (False, True):
            name = f"{card}{place}{', recomputed' * recompute}"
            with made(patcher):
                found, loaded = gradient(patcher, recompute)
            share = loaded / patcher.model_size()
            outcome.at_least(f"{name}: share of the weights on the card", share, least)
            outcome.at_most(f"{name}: share of the weights on the card", share, most)
            compare(outcome, name, found, resident, COSINE)


def by_allocator(card: Card, allocator: str) -> dict[str, Tensor]:
    """Gradients of a process of its own: an allocator is chosen when PyTorch starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradients.safetensors"
        command = [sys.executable, "-m", "lab.gpu.placement", str(card.device), str(path), allocator]
        variables = {**os.environ, VARIABLE: f"backend:{allocator}"}
        subprocess.run(command, env=variables, check=True)
        return load_file(path)


def check(card: Card) -> Outcome:
    """Check 3: each against the resident weights."""
    outcome = Outcome()
    patcher = load(random_flux(torch.bfloat16).state_dict())
    resident, loaded = gradient(patcher)
    outcome.figures["resident: MiB on the card"] = loaded / 2**20
    compare(outcome, "recomputed", gradient(patcher, True)[0], resident, COSINE)
    if card.device.type != "cpu":
        compare_places(outcome, patcher, resident)
    if card.device.type == "cuda":
        # ComfyUI never asks for the other one on AMD.
        for allocator in ALLOCATORS[:1] if torch.version.hip else ALLOCATORS:
            compare(outcome, allocator, by_allocator(card, allocator), resident, COSINE)
    return outcome


def write_gradients(device: str, path: str, allocator: str) -> None:
    """What the process of `by_allocator` does."""
    card = find_card(device)
    assert card is not None, "a device was named"
    chosen = card.facts()["allocator"]
    assert chosen in (allocator, "none"), f"PyTorch took the allocator {chosen}"
    # As ComfyUI's start sets it: with cudaMallocAsync, weights on their way to the card share no buffer.
    args.cuda_malloc = allocator == "cudaMallocAsync"
    with vram_state(management.VRAMState.NO_VRAM):
        found, _ = gradient(load(random_flux(torch.bfloat16).state_dict()), recompute=True)
    save_file(found, path)


if __name__ == "__main__":
    write_gradients(*sys.argv[1:])
