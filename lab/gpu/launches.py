"""What a card is started for in a steady pair of FLUX.1-dev, counted without a card: `python -m lab.gpu.launches`.

The pair is the trainer's own, at true size on the `meta` device. Every operation that is no view counts as one: a card
starts at least one kernel for it. Three things are other operations on a card of Nvidia than on `meta`, and are made
the same here: an attention and an RMS norm are one operation each way, and the optimiser works on lists of factors.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.training import trainer
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.run_state import RunState
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.bench.flops import Priced
from lab.bench.true_size import Shapes, true_config, true_flux
from lab.gpu.copies import FEW
from lab.gpu.hosts import UNWATCHED

TEACHER = "frozen forward"
STUDENT = "student's forward"
LOSSES = "points, losses and clipping"
BACKWARD = "backward"
OPTIMISER = "optimiser"
COPY = "copy of the whole pair"
PARTS = (TEACHER, STUDENT, LOSSES, BACKWARD, OPTIMISER, COPY)
PRESETS = ("quick", "paper")
NO_KERNELS = ("_unsafe_view", "new_empty", "new_empty_strided")  # they start none, and are no views to PyTorch
PAIRS = 2  # the second one is counted: the optimiser has its states by then


class _OneKernel(torch.autograd.Function):
    """A norm as one operation forward and one backward; on `meta` its result does not matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


def _norm(x: Tensor, *_: Any) -> Tensor:
    return _OneKernel.apply(x)


def _flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    assert attn_mask is None, "flash attention takes none"
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


class Launches(TorchDispatchMode):
    """Counts operations by the part of the pair that they belong to.

    Attributes:
        part: that runs now, outside of backward.
        operations: by part.
        written: bytes of their results, by part.
        names: operations by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = LOSSES
        self.operations: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.names: dict[str, Counter[str]] = {part: Counter() for part in PARTS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        touched = [leaf for leaf in tree_leaves((args, results)) if isinstance(leaf, Tensor)]
        # What touches the CPU alone starts nothing, such as the counters of AdamW.
        if not func.is_view and func._opname not in NO_KERNELS and any(tensor.is_meta for tensor in touched):
            part = BACKWARD if torch._C._current_graph_task_id() != -1 else self.part
            self.operations[part] += 1
            self.written[part] += sum(tensor.nbytes for tensor in results)
            self.names[part][func._opname] += 1
        return out

    def during(self, part: str) -> Callable[..., None]:
        """A hook that says which part begins."""

        def hook(*_: Any) -> None:
            self.part = part

        return hook


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Inside, attention, RMS norm and clipping are the operations that a card of Nvidia has."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "rms_norm", _norm))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _flash))
        stack.enter_context(mock.patch.object(clip_grad, "_has_foreach_support", lambda *_, **__: True))
        yield


@contextmanager
def hooked(launches: Launches, model: FluxModel, optimizers: list[torch.optim.Optimizer]) -> Iterator[None]:
    """Inside, the counter is told what runs."""

    def forward_begins(*_: Any) -> None:
        launches.part = STUDENT if model.adapters else TEACHER

    handles = [model.module.register_forward_pre_hook(forward_begins)]
    handles.append(model.module.register_forward_hook(launches.during(LOSSES)))
    for optimizer in optimizers:
        handles.append(optimizer.register_step_pre_hook(launches.during(OPTIMISER)))
        handles.append(optimizer.register_step_post_hook(launches.during(LOSSES)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steady_pair(preset: str, recompute: bool = False, make: Callable[[], FluxModel] = true_flux) -> Launches:
    """The operations of a preset's second pair, and of the copy of it that a run keeps."""
    config = dataclasses.replace(true_config(preset), steps=PAIRS, refresh_every=PAIRS, **FEW, **UNWATCHED)
    plan = prepare(config, Shapes())
    priced = Priced(count=False, true=make)
    priced.attach(config.targets, config.rank, torch.Generator())
    epoch = TrajectoryCache(priced, plan).epoch(0)
    model = make()
    lora = model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    optimizers = [lora_optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["foreach"] = True  # PyTorch's own choice on a card, and not on `meta`
    run = RunState(config, lora, optimizers, None)
    with as_on_a_card(), exact_gradients(model.module, recompute, model.remembering):
        for number in range(PAIRS):
            launches = Launches()
            with launches, hooked(launches, model, optimizers):
                trainer.train_pair(model, plan, epoch, number, lora, optimizers)
                launches.part = COPY
                run.copy_pair()
    return launches


def main() -> None:
    """Prints a table for each preset."""
    parser = argparse.ArgumentParser(prog="python -m lab.gpu.launches", description=__doc__)
    parser.add_argument("presets", nargs="*", default=PRESETS)
    for preset in parser.parse_args().presets:
        for recompute in (False, True):
            found = steady_pair(preset, recompute)
            print(f"{preset}, blocks {'recomputed' if recompute else 'kept'}: {found.operations.total()} operations")
            for part in PARTS:
                print(f"  {part}: {found.operations[part]}, {found.written[part] / 1e9:.1f} GB written")
                print(f"    {dict(found.names[part].most_common(8))}", flush=True)


if __name__ == "__main__":
    main()
