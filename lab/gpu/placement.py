"""The gradient wherever the weights lie: on the card, in part or not at all, under both allocators."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as management
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eraseanything_core.comfy_bridge.training_session import training_session
from lab.gpu.card import Card, find_card
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


def gradient(patcher: Any, recompute: bool = False, memory: int = 0) -> tuple[dict[str, Tensor], int]:
    """Gradients in bfloat16, and the bytes of weights that ComfyUI has on the card."""
    management.unload_all_models()
    with training_session(patcher, torch.bfloat16, recompute, memory) as model:
        return gradients(model), patcher.loaded_size()


def half_room(card: Card, patcher: Any) -> int:
    """The memory that a session has to ask for so that half of the weights stay in main memory."""
    return int(management.get_free_memory(card.device)) - patcher.model_size() // 2


def by_allocator(card: Card, allocator: str) -> dict[str, Tensor]:
    """Gradients of a process of its own: an allocator is chosen when PyTorch starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradients.safetensors"
        command = [sys.executable, "-m", "lab.gpu.placement", str(card.device), str(path)]
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
        for recompute in (False, True):
            found, loaded = gradient(patcher, recompute, half_room(card, patcher))
            outcome.figures["half: MiB on the card"] = loaded / 2**20
            compare(outcome, f"half{', recomputed' * recompute}", found, resident, COSINE)
        with vram_state(management.VRAMState.NO_VRAM):
            for recompute in (False, True):
                found, _ = gradient(patcher, recompute)
                compare(outcome, f"--novram{', recomputed' * recompute}", found, resident, COSINE)
    if card.device.type == "cuda":
        for allocator in ALLOCATORS:
            compare(outcome, allocator, by_allocator(card, allocator), resident, COSINE)
    return outcome


def write_gradients(device: str, path: str) -> None:
    """What the process of `by_allocator` does."""
    assert find_card(device) is not None, "a device was named"
    with vram_state(management.VRAMState.NO_VRAM):
        found, _ = gradient(load(random_flux(torch.bfloat16).state_dict()), recompute=True)
    save_file(found, path)


if __name__ == "__main__":
    write_gradients(*sys.argv[1:])
