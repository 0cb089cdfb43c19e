"""Meta-Unlearning (Gao et al., 2024) over the LoRA: an eraser that fine-tuning shall not undo.

theta' = theta - rate sign(d L_re / d theta): one step of somebody who trains the concept back, as Adam's first one is.
The gradient of the eraser gets, times `meta_weight` and all of them at theta' (first order: d theta' / d theta is 1),

    - harm d L_re - related d L_retain + erased d L_erase

so that the step back does not bring the concept back, breaks what is related to it, and leaves it erased.

    L_re = mean( v_student(x_t, c) - sg v(x_t, c) )^2

The paper's L_re is flow matching on pictures of the concept, whose expected gradient this is where they are the
original model's own; so no pictures are needed. The sign of L_erase at theta' is not clear in the paper; it is
minimised here. The published weights are 0.1, 0.01, and 1 where an option of the script is misspelt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols import TrainableLora
from ..training import loss_scale, losses
from ..training.draws import Draw
from ..training.method import Method, Pair
from ..training.objective import Losses, retain, weighted_sum
from ..training.plan import conds


@dataclass(frozen=True)
class MetaSettings:
    """The meta step.

    Attributes:
        rate: of the step back, in the LoRA's own numbers.
        harm: weight of L_re after it.
        related: weight of L_retain after it.
        erased: weight of the eraser's own loss after it.
    """

    rate: float = 1e-2
    harm: float = 0.1
    related: float = 0.01
    erased: float = 1.0


SETTINGS = MetaSettings()


def meta_graphs(method: Method, pair: Pair, draw: Draw) -> Iterator[Losses]:
    """`meta`, in as many graphs as there are losses after the step back; `Method.extras` takes it."""
    weight = pair.config.meta_weight
    # Its sign is all that counts; float16 would lose the small ones without a scale.
    scaled = loss_scale.scale_of(pair.optimizers[0]) * relearning(pair, draw)
    gradient = torch.autograd.grad(scaled, list(pair.lora.parameters()), allow_unused=True)
    back = [None if g is None else -SETTINGS.rate * g.sign() for g in gradient]
    # The caller goes backward before it comes back here, so each gradient is one at theta'.
    with moved(pair.lora, back):
        yield {"meta": -weight * SETTINGS.harm * relearning(pair, draw)}
        if draw.retain is not None and pair.epoch.retain is not None:
            related = retain(pair.model, pair.plan, pair.epoch.retain, draw.retain)
            yield {"meta": -weight * SETTINGS.related * related}
        for graph in method.erase(pair, draw):
            yield {"meta": weight * SETTINGS.erased * weighted_sum(graph, pair.config)}


def relearning(pair: Pair, draw: Draw) -> Tensor:
    """L_re at the erasing points."""
    model = pair.model
    walks = pair.epoch.concept
    row, step = draw.erase
    x_t, sigma, teacher = walks.at(row, step, model.device)
    concept = conds(model, pair.plan, [walks.sources[i].concept for i in row])
    if pair.config.walk == "neutral":  # the walk has the neutral prompt's velocity
        asked = conds(model, pair.plan, [walks.sources[i].teacher_concept() for i in row])
        teacher = model.velocity(x_t, sigma, asked, adapters=False)
    return losses.retain_loss(model.velocity(x_t, sigma, concept, adapters=True), teacher)


@contextmanager
def moved(lora: TrainableLora, way: Sequence[Tensor | None]) -> Iterator[None]:
    """Inside, the factors are elsewhere; afterwards they are bit for bit where they were."""
    parameters = list(lora.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, way, strict=True):
            if step is not None:
                parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
