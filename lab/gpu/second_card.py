"""The gradient on a second card."""

import torch

from lab.gpu.card import NUMBERED, Card
from lab.gpu.gradients import compare
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.placement import COSINE, compare_places, gradient
from lab.gpu.small_model import load, random_flux


def second_of(card: Card) -> torch.device:
    """Another device of the same kind.

    Raises:
        Skipped: there is none.
    """
    kind = card.device.type
    count = torch.get_device_module(card.device).device_count() if kind in NUMBERED else 0
    others = [number for number in range(count) if number != card.device.index]
    if not others:
        raise Skipped("There is no second card.")
    return torch.device(kind, others[0])


def check(card: Card) -> Outcome:
    """Check 17: as check 3, for a model that was loaded for another card than the current one."""
    second = second_of(card)
    outcome = Outcome()
    state = random_flux(torch.bfloat16).state_dict()
    resident, _ = gradient(load(state))
    # The current card stays the first one: a session has to go to that of its weights by itself.
    patcher = load(state, load_device=second)
    for recompute in (False, True):
        found, loaded = gradient(patcher, recompute)
        outcome.at_least("second card: share of the weights", loaded / patcher.model_size(), 0.99)
        compare(outcome, f"second card{', recomputed' * recompute}", found, resident, COSINE)
    compare_places(outcome, patcher, resident, "second card, ")
    return outcome
