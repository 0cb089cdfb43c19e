"""Trainings beside other tenants of the card: the memory that is left decides how they run."""

from typing import Any

import comfy.model_management as management
import torch

from eraseanything_core.comfy_bridge.memory import MemoryPlan, loaded_bytes
from eraseanything_core.protocols import GIB
from eraseanything_core.training.recipe import train_eraser
from lab.gpu.card import Card
from lab.gpu.hosts import LabHost
from lab.gpu.outcome import Outcome
from lab.gpu.true_size import CASES, TINY_CASES, Case, config_of, host_of

FREE = (24, 16, 12)  # GiB
PAIRS = 3
ELSEWHERE = 0.1  # share of the weights that may lie elsewhere than was told
STREAMED = 5  # layers for which ComfyUI may keep room beside the weights that stay on the card


class Watched(LabHost):
    """A host that keeps what it told a training, and how it was then asked for the model.

    Attributes:
        told: the estimate.
        recomputed: whether the session recomputes blocks.
        loaded: bytes of weights on the card, after each pair.
    """

    def __init__(self, host: LabHost) -> None:
        super().__init__(host.model, host.text)
        self.told: MemoryPlan | None = None
        self.recomputed = False
        self.loaded: list[int] = []

    def estimate(self, *args: Any, **more: Any) -> MemoryPlan:
        """See `ModelHost.estimate`."""
        self.told = super().estimate(*args, **more)
        return self.told

    def session(self, dtype: Any = None, gradient_checkpointing: bool = False, memory: int = 0) -> Any:
        """See `ModelHost.session`."""
        self.recomputed = gradient_checkpointing
        return super().session(dtype, gradient_checkpointing, memory)

    def look(self, pairs: int, _: dict[str, float]) -> None:
        """After every pair."""
        self.loaded.append(loaded_bytes(self.model))


def ballast(card: Card, free: float) -> torch.Tensor:
    """A tensor that leaves so many bytes of the card free."""
    size = max(0, int(management.get_free_memory(card.device) - free))
    return torch.empty(0 if card.device.type == "cpu" else size, dtype=torch.uint8, device=card.device)


def judge(outcome: Outcome, name: str, host: Watched) -> None:
    """Notes whether blocks and weights were where it was told."""
    told = host.told
    assert told is not None, "a training asks for an estimate"
    outcome.must(f"{name}: blocks as it was told", host.recomputed == told.gradient_checkpointing)
    outcome.must(f"{name}: all pairs ran", len(host.loaded) == PAIRS)
    resident = told.weights - told.offloaded
    off = max(abs(loaded - resident) for loaded in host.loaded) / told.weights
    allowed = max(ELSEWHERE, STREAMED * largest_layer(host.model.model) / told.weights)
    outcome.at_most(f"{name}: share of the weights elsewhere than told", off, allowed)


def largest_layer(module: torch.nn.Module) -> int:
    """Bytes of the weights of the layer that has most."""
    return max(sum(weight.nbytes for weight in layer.parameters(recurse=False)) for layer in module.modules())


def judge_peak(outcome: Outcome, name: str, told: MemoryPlan, peak: float) -> None:
    """Notes the peak of the training over what was told."""
    outcome.at_most(f"{name}: peak over what was told", peak / (told.activations + told.weights - told.offloaded), 1.0)


def train_beside(outcome: Outcome, card: Card, case: Case, free: float, name: str) -> None:
    """A training of a few pairs with so many bytes free."""
    host = Watched(host_of(card, case))
    held = ballast(card, free)
    said: list[str] = []
    config = config_of(case, steps=PAIRS)
    peak = card.peak(lambda: train_eraser(host, config, host.look, auto=True, notify=said.append))
    outcome.figures[f"{name}: told"] = said[0]
    judge(outcome, name, host)
    assert host.told is not None, "a training asks for an estimate"
    if card.counts:
        judge_peak(outcome, name, host.told, peak.live - held.nbytes)


def check(card: Card) -> Outcome:
    """Check 8: with `memory: auto` three pairs run to their end, and in the way that was told."""
    outcome = Outcome()
    case = (TINY_CASES if card.tiny else CASES)[0]
    for free in FREE[:1] if card.tiny else FREE:
        name = f"{free} GiB free"
        management.unload_all_models()
        card.collect()
        if not card.tiny and management.get_free_memory(card.device) < free * GIB:
            outcome.figures[name] = "the card has less"
            continue
        train_beside(outcome, card, case, free * GIB, name)
    return outcome
