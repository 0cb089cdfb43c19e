"""The gradient on a second card."""

import comfy.model_management as management
import torch

from lab.gpu.card import Card
from lab.gpu.gradients import compare, gradients
from lab.gpu.outcome import Outcome, Skipped
from lab.gpu.placement import COSINE
from lab.gpu.small_model import on_card, random_flux


def second_of(card: Card) -> torch.device:
    """Another device of the same kind.

    Raises:
        Skipped: there is none.
    """
    count = torch.get_device_module(card.device).device_count() if card.device.type in ("cuda", "xpu") else 0
    if count < 2:
        raise Skipped("There is no second card.")
    return torch.device(card.device.type, 1)


def check(card: Card) -> Outcome:
    """Check 17: the same gradient as on the first one."""
    outcome = Outcome()
    module = random_flux(torch.bfloat16)
    with on_card(module, torch.bfloat16, card.device) as model:
        expected = gradients(model)
    second = second_of(card)
    with management.cuda_device_context(second), on_card(module, torch.bfloat16, second) as model:
        compare(outcome, "second card", gradients(model), expected, COSINE)
    return outcome
