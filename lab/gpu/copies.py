"""The copies between main memory and a card in a steady pair, counted on tensors without data.

The pair is the trainer's own, on a small FLUX.1 on the `meta` device. How many copies it makes does not depend on the
model's size.
"""

import dataclasses
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eraseanything_core.comfy_bridge.architecture import new_flux
from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.training import trainer
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.placed import placed
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.bench.flops import Priced
from lab.bench.true_size import true_config
from lab.gpu.hosts import UNWATCHED, RandomText
from lab.gpu.small_model import SHAPE

COPIES = ("_to_copy", "copy_")
PAIRS = 3  # the last one is counted
FEW = {"cached_trajectories": 1, "cached_retain_trajectories": 1, "sampling_steps": 4, "other_neutrals": ()}
TOKENS = 24


class Copies(TorchDispatchMode):
    """Notes every copy from one device to another, and counts what runs on a device.

    Attributes:
        queued: shapes of what is copied while the program goes on.
        blocking: shapes of what the program waits for.
        launches: operations that are no views; a card starts at least one kernel for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queued: list[tuple[int, ...]] = []
        self.blocking: list[tuple[int, ...]] = []
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.launches += not func.is_view
        tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, torch.Tensor)]
        if func._opname in COPIES and len({tensor.device for tensor in tensors}) > 1:
            queued = (kwargs or {}).get("non_blocking") or (func._opname == "copy_" and args[2:] == (True,))
            (self.queued if queued else self.blocking).append(tuple(tensors[-1].shape))
        return out


def small_flux() -> FluxModel:
    """The seam over a small FLUX.1 without data."""
    module = new_flux(SHAPE, torch.bfloat16, device="meta").requires_grad_(False)
    return FluxModel(frozen_view(module, torch.bfloat16), "meta", torch.bfloat16)


def steady_pair(preset: str) -> Copies:
    """The copies of a preset's third pair, whose prompts have all been asked for before."""
    config = dataclasses.replace(true_config(preset, 128), steps=PAIRS, refresh_every=PAIRS, **FEW, **UNWATCHED)
    plan = prepare(config, RandomText(TOKENS, (SHAPE["context_in_dim"], SHAPE["vec_in_dim"])))
    shapes: Any = Priced(count=False, true=small_flux)
    shapes.attach(config.targets, config.rank, torch.Generator())
    epoch = TrajectoryCache(shapes, plan).epoch(0)
    model = small_flux()
    plan = placed(plan, model.device)
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    optimizers = [lora_optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
    with exact_gradients(model.module, False):
        for number in range(PAIRS):
            with Copies() as copies:
                trainer.train_pair(model, plan, epoch, number, lora, optimizers)
    return copies
