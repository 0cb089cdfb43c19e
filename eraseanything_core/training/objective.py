"""The two levels of Algorithm 1 as graphs: each yields its losses one forward at a time.

A graph is to be backpropagated before the next one is asked for, so that only one is alive.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import prompts
from ..sampling import Pool
from . import losses
from .config import EraseConfig
from .plan import Plan, conds, selected
from .trajectory_cache import Draw, Epoch, feature

Losses = dict[str, Tensor]


def erase_graphs(model, plan: Plan, epoch: Epoch, draw: Draw) -> Iterator[Losses]:
    """The lower level: L_esd and L_attn from one forward of the student, on the teacher's trajectory."""
    config, pool = plan.config, epoch.concept
    row, step = draw.erase
    x_t, sigma, teacher = pool.at(row, step, model.device)
    concept = [pool.sources[i].concept for i in row]
    shared = config.attn_weight and "share" in plan.shortcuts
    capture = model.capture(selected(model, plan, concept), config.attention_blocks) if shared else None
    student = model.velocity(x_t, sigma, conds(model, plan, concept), adapters=True, capture=capture)
    neutral = pool.neutral[row, step].to(model.device)
    found = {"esd": losses.esd_loss(student, teacher, neutral, config.eta)}
    if capture:
        found["attn"] = losses.attention_loss(image_feature(capture.maps))
    yield found
    if config.attn_weight and not capture:
        yield {"attn": losses.attention_loss(feature(model, plan, concept, x_t, sigma, adapters=True))}


def preserve_graphs(
    model, plan: Plan, epoch: Epoch, draw: Draw, rng: torch.Generator | None = None
) -> Iterator[Losses]:
    """The upper level: stay at the teacher where the concept is absent, and bend the concept's attention."""
    config = plan.config
    if draw.retain:
        yield {"retain": retain(model, plan, epoch.retain, draw)}
    elif config.retain_weight:
        yield {"retain": paper_retain(model, plan, epoch.concept, rng)}
    if draw.maps:
        row, step = draw.maps
        x_t, sigma, _ = epoch.concept.at(row, step, model.device)
        sentences = [epoch.concept.sources[i] for i in row]
        yield {"rsc": rsc(model, plan, sentences, x_t, sigma, epoch.concept.known[row, step].to(model.device))}


def retain(model, plan: Plan, pool: Pool, draw: Draw) -> Tensor:
    """L_retain on the teacher's trajectories of prompts that must stay."""
    row, step = draw.retain
    x_t, sigma, teacher = pool.at(row, step, model.device)
    kept = conds(model, plan, [pool.sources[i] for i in row])
    return losses.retain_loss(model.velocity(x_t, sigma, kept, adapters=True), teacher)


def paper_retain(model, plan: Plan, pool: Pool, rng: torch.Generator) -> Tensor:
    """The paper's Eq. 4 on the ends of the concept's trajectories, of those that the teacher walks."""
    walked = plan.config.student_rows(len(pool.sources))
    row = torch.randint(walked, len(pool.sources), (plan.config.retain_batch_size,), generator=rng)
    x_0 = pool.x[row, -1].to(model.device)
    noise = torch.randn(x_0.shape, generator=rng).to(model.device)
    sigma = torch.rand(len(row), generator=rng).to(model.device)
    t = sigma[:, None, None, None]
    concept = conds(model, plan, [pool.sources[i].concept for i in row])
    student = model.velocity((1 - t) * x_0 + t * noise, sigma, concept, adapters=True)
    return losses.flow_matching_loss(student, x_0, noise)


def rsc(model, plan: Plan, sentences: list[prompts.Sentence], x_t: Tensor, sigma: Tensor, known: Tensor) -> Tensor:
    """L_rsc; only the concept's feature carries a gradient, `known` is what `pools.known_features` gave at x_t."""
    un = feature(model, plan, [s.concept for s in sentences], x_t, sigma, adapters=True)
    return losses.rsc_loss(un, known[:, 0], known[:, 1:], plan.config.tau, plan.config.paper_sign)


def weighted(found: Losses, config: EraseConfig) -> Tensor:
    """The weighted sum of the losses that were computed."""
    weights = {
        "esd": config.esd_weight,
        "attn": config.attn_weight,
        "retain": config.retain_weight,
        "rsc": config.rsc_weight,
    }
    return sum(weights[name] * loss for name, loss in found.items())
