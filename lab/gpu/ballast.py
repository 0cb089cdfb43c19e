"""Trainings beside other tenants of the card: the memory that is left decides how they run."""

import comfy.model_management as management
import torch

from eraseanything_core.protocols import GIB
from eraseanything_core.training.recipe import train_eraser
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome
from lab.gpu.true_size import CASES, TINY_CASES, config_of, host_of

FREE = (24, 16, 12)  # GiB
PAIRS = 3


def ballast(card: Card, free: float) -> torch.Tensor:
    """A tensor that leaves so many bytes of the card free."""
    size = max(0, int(management.get_free_memory(card.device) - free))
    return torch.empty(0 if card.device.type == "cpu" else size, dtype=torch.uint8, device=card.device)


def check(card: Card) -> Outcome:
    """Check 8: with `memory: auto` three pairs run to their end, and in the way that was told."""
    outcome = Outcome()
    case = (TINY_CASES if card.tiny else CASES)[0]
    host = host_of(card, case)
    for free in FREE[:1] if card.tiny else FREE:
        card.collect()
        management.unload_all_models()
        held = ballast(card, free * GIB)
        told: list[str] = []
        config = config_of(case, steps=PAIRS)
        result = train_eraser(host, config, auto=True, notify=told.append)
        recomputed = "recomputed in backward" in told[0]
        outcome.figures[f"{free} GiB free"] = told[0]
        outcome.must(f"{free} GiB free: all pairs ran", result.steps == PAIRS)
        outcome.must(f"{free} GiB free: as it was told", result.config.gradient_checkpointing == recomputed)
        del held
    return outcome
