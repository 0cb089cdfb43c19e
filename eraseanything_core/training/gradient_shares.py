"""Weights of L_attn and L_rsc from the share of the gradient that each is to have.

A weight means something else on every model: the attention to a word and the squared error of a velocity have nothing
in common. So before the first pair the gradient of each loss is measured alone, with its weight at 1. With shares
a and r, norms n of the gradients and the weight w_esd of L_esd:

    w_attn n_attn : w_rsc n_rsc : w_esd n_esd = a : r : 1 - a - r

L_retain has no gradient then, because the student still is the teacher.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..protocols import ErasableModel, TrainableLora
from . import loss_scale
from .objective import erase_graphs, preserve_graphs
from .plan import Plan
from .trajectory_cache import Epoch

MEASURED_PAIRS = 2  # whose gradients are measured: each costs two forwards and backwards, and one says too little


def shared_weights(model: ErasableModel, plan: Plan, epoch: Epoch, lora: TrainableLora) -> dict[str, float]:
    """The weights that give losses their shares, by setting.

    Args:
        model: the student, which has not been trained yet.
        plan: the run's.
        epoch: the first one.
        lora: the factors.

    Returns:
        `attn_weight` and `rsc_weight`, each if the loss is on and has a share.

    Raises:
        ValueError: a loss that is to have a share has no gradient.
    """
    config = plan.config
    shares = {}
    if config.attn_weight and config.attn_share:
        shares["attn"] = config.attn_share
    if config.rsc_weight and config.rsc_share:
        shares["rsc"] = config.rsc_share
    if not shares:
        return {}
    rest = 1 - sum(shares.values())
    erasing = config.esd_weight * gradient_norm(model, plan, epoch, lora, "esd")
    weights = {}
    for name, share in shares.items():
        norm = gradient_norm(model, plan, epoch, lora, name)
        if not norm:
            raise ValueError(f"the {name} loss has no gradient to take a share of: set {name}_share to 0")
        weights[f"{name}_weight"] = share / rest * erasing / norm
    return weights


def gradient_norm(model: ErasableModel, plan: Plan, epoch: Epoch, lora: TrainableLora, name: str) -> float:
    """The mean norm of one loss's gradient on all factors together, over the points of the first pairs.

    Args:
        model, plan, epoch, lora: see `shared_weights`.
        name: "esd", "attn" or "rsc".
    """
    # Only this loss has a graph, and its forward reads no attention that it does not need.
    off: dict[str, Any] = {f"{other}_weight": 0.0 for other in ("attn", "rsc", "retain") if other != name}
    alone = dataclasses.replace(plan, config=dataclasses.replace(plan.config, **off))
    parameters = list(lora.parameters())
    # float16 loses small gradients; both sides of the ratio are scaled.
    scale = loss_scale.START if model.dtype == torch.float16 else 1.0
    norms = []
    for pair in list(epoch.draws)[:MEASURED_PAIRS]:
        (draw, *_) = epoch.draws[pair]
        if name == "rsc":
            graphs = preserve_graphs(model, alone, epoch, dataclasses.replace(draw, retain=None))
        else:
            graphs = erase_graphs(model, alone, epoch, draw)
        for graph in graphs:
            if name in graph:
                norms.append(_norm(torch.autograd.grad(scale * graph[name], parameters, allow_unused=True)))
    return sum(norms) / len(norms)


def _norm(gradients: tuple[Tensor | None, ...]) -> float:
    """The norm of all gradients together."""
    used = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(used).norm())
