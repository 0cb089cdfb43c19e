"""Peaks of memory over a real pair at true size, weights included: live storages counted operation by operation."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.ops
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.protocols import GIB
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.draws import Draw
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import Plan, prepare
from eraseanything_core.training.run_state import RunState
from eraseanything_core.training.trajectory_cache import Epoch, TrajectoryCache
from lab.bench.flops import Priced
from lab.bench.true_size import Shapes, true_config, true_flux

ALIGNED = 512  # bytes that an allocator rounds to


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def add(self, tensors):
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                size = -(-storage.nbytes() // ALIGNED) * ALIGNED
                self.seen[storage] = size
                weakref.finalize(storage, self.free, size)
                self.now += size
                self.peak = max(self.peak, self.now)

    def free(self, size: int):
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.add(out)
        return out


def packed(bits: float):
    """Operations whose linears hold `bits` a weight and unpack them for each use, as GGUF's layers do."""

    class Linear(torch.nn.Module):
        def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype=None, device=None):
            super().__init__()
            self.in_features = in_features
            self.out_features = out_features
            size = int(in_features * out_features * bits / 8)
            self.weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.uint8, device=device), requires_grad=False)
            self.bias = torch.nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

        def cast_bias_weight(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.weight.new_empty((self.out_features, self.in_features), dtype=x.dtype), self.bias

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, *self.cast_bias_weight(x))

    return type("Packed", (comfy.ops.disable_weight_init,), {"Linear": Linear})


BASES = {
    "bf16": (torch.bfloat16, comfy.ops.disable_weight_init),
    "fp8": (torch.float8_e4m3fn, comfy.ops.manual_cast),
    "q4": (torch.bfloat16, packed(4.5)),  # NF4 with float32 scales, or GGUF's Q4_0
}
CASES = {
    "fp8_512_ckpt": ("fp8", 512, 256, True),
    "fp8_1024_ckpt": ("fp8", 1024, 512, True),
    "fp8_512": ("fp8", 512, 256, False),
    "bf16_512_ckpt": ("bf16", 512, 256, True),
    "bf16_512": ("bf16", 512, 256, False),
    "q4_512_ckpt": ("q4", 512, 256, True),
}


@cache
def prepared(pixels: int, tokens: int) -> tuple[Plan, Epoch]:
    """A run of the quick preset of FLUX.1 up to its first pair."""
    return first_epoch(true_config("quick", pixels), Shapes(tokens), Priced(count=False))


def first_epoch(config: EraseConfig, text: Shapes, priced: Priced) -> tuple[Plan, Epoch]:
    """A run up to its first pair; the draw's indices are numbers, for fake tensors have none."""
    plan = prepare(config, text)
    priced.attach(config.targets, config.rank, torch.Generator())
    epoch = TrajectoryCache(priced, plan).epoch(0)
    drawn = epoch.draws[0][0]
    draw = Draw(_numbers(drawn.erase), _numbers(drawn.retain), _numbers(drawn.rsc))
    return plan, replace(epoch, draws={0: [draw]})


def _numbers(points):
    """The indices of points as lists; None for a loss that is off."""
    return None if points is None else [where.tolist() for where in points]


def peak_bytes(base: str, pixels: int, tokens: int, checkpoint: bool) -> tuple[int, int]:
    """Of FLUX.1, see `tracked`."""
    return tracked(lambda: true_flux(*BASES[base], device="cpu"), *prepared(pixels, tokens), checkpoint)


def tracked(make: Callable[[], Any], plan: Plan, epoch: Epoch, checkpoint: bool) -> tuple[int, int]:
    """The peak over a pair in the steady state, with weights and the copy of the last whole pair.

    Also the weights alone.
    The tensors are fake ones of a CPU, whose fused attention keeps what a GPU's keeps.
    """
    config = plan.config
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = make()
        weights = live.now
        lora = model.attach(config.targets, config.rank, torch.Generator())
        both = [lora_optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
        run = RunState(config, lora, both, None)
        with exact_gradients(model.module, checkpoint, model.remembering):
            # One update on the sum is the first one's; the second keeps nothing.
            keep_states(lora, both if config.alternate else both[:1])
            run.copy_pair()
            live.peak = live.now
            trainer.train_pair(model, plan, epoch, 0, lora, both)
    return live.peak, weights


def keep_states(lora, optimizers: list):
    """Makes what the optimisers keep from their first step on; the values of fake tensors are none."""
    for each in optimizers:
        for parameter in lora.parameters():
            parameter.grad = torch.zeros_like(parameter)
        each.step()
        each.zero_grad()


def peaks() -> dict[str, float]:
    """GiB by case."""
    return {name: peak_bytes(*case)[0] / GIB for name, case in CASES.items()}
