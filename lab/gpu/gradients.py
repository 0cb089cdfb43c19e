"""The LoRA's gradient of each loss, on the card and in float64 on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from eraseanything_core.attention.columns import image_feature
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.training import losses
from lab.gpu.card import Card
from lab.gpu.outcome import Outcome
from lab.gpu.small_model import Inputs, attach, inputs, on_card, random_flux

CPU = torch.device("cpu")
SCALE = 2.0**14  # of a loss in float16, as in a training
ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-2}
COSINE = {torch.float32: 0.999999, torch.bfloat16: 0.999, torch.float16: 0.999}


def esd(model: FluxModel, given: Inputs) -> Tensor:
    """The erasing loss on the velocity."""
    teacher, neutral = given.velocities.to(model.device)
    return losses.esd_loss(velocity(model, given), teacher, neutral, 1.0)


def attn(model: FluxModel, given: Inputs) -> Tensor:
    """The attention that the concept gets, read in a whole forward."""
    capture = model.capture(given.select.to(model.device))
    velocity(model, given, capture)
    return losses.attention_loss(capture.maps)


def retain(model: FluxModel, given: Inputs) -> Tensor:
    """The preserving loss."""
    return losses.retain_loss(velocity(model, given), given.velocities[0].to(model.device))


def rsc(model: FluxModel, given: Inputs) -> Tensor:
    """The contrastive loss, in a forward that ends at the last block that is read."""
    capture = model.capture(given.select.to(model.device))
    cond = model.cond(given.context, given.pooled, 2.0)
    model.columns(given.x_t.to(model.device), given.sigma.to(model.device), cond, True, capture)
    features = given.features.to(model.device)
    return losses.rsc_loss(image_feature(capture.maps), features[:, 0], features[:, 1:], 0.07)


LOSSES: dict[str, Callable[[FluxModel, Inputs], Tensor]] = {"esd": esd, "attn": attn, "retain": retain, "rsc": rsc}


def velocity(model: FluxModel, given: Inputs, capture: object = None) -> Tensor:
    """The student's, in float32 or wider."""
    cond = model.cond(given.context, given.pooled, 2.0)
    x_t = given.x_t.to(model.device)
    x_t = x_t.double() if model.dtype == torch.float64 else x_t
    return model.velocity(x_t, given.sigma.to(model.device), cond, True, capture)


def gradients(model: FluxModel, names: tuple[str, ...] = tuple(LOSSES)) -> dict[str, Tensor]:
    """The flat gradient of each loss, in float64 on the CPU."""
    lora = attach(model)
    scale = SCALE if model.dtype == torch.float16 else 1.0
    found = {}
    for name in names:
        lora.zero_grad()
        (scale * LOSSES[name](model, inputs())).backward()
        # A loss on attention alone reaches no later block, and those have no gradient.
        parts = [torch.zeros_like(p) if p.grad is None else p.grad / scale for p in lora.parameters()]
        found[name] = torch.cat([part.flatten().double().cpu() for part in parts])
    return found


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def cosine(found: Tensor, expected: Tensor) -> float:
    """Of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(found, expected, dim=0))


def compare(outcome: Outcome, name: str, found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Notes the smallest cosine between the gradients of two models, over the losses."""
    outcome.at_least(f"{name}: cosine", min(cosine(found[loss], expected[loss]) for loss in found), bound)


def check(card: Card) -> Outcome:
    """Check 1: every loss in every type, blocks kept and recomputed, against the same weights in float64."""
    outcome = Outcome()
    for dtype, bound in ERROR.items():
        module = random_flux(dtype)
        with on_card(module, torch.float64, CPU) as model:
            expected = gradients(model)
        for recompute in (False, True):
            with on_card(module, dtype, card.device, recompute) as model:
                found = gradients(model)
            way = f"{str(dtype).removeprefix('torch.')}, {'recomputed' if recompute else 'kept'}"
            for name, gradient in found.items():
                outcome.at_most(f"{way}, {name}: error", error(gradient, expected[name]), bound)
            compare(outcome, way, found, expected, COSINE[dtype])
    return outcome
