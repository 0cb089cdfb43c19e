"""Peaks of memory over a real pair at true size, weights included: live storages counted operation by operation."""

import weakref
from dataclasses import replace
from functools import cache

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
    """A run of the quick preset up to its first pair; the draw's indices are numbers, for fake tensors have none."""
    config = true_config("quick", pixels)
    priced = Priced(count=False)
    plan = prepare(config, Shapes(tokens))
    priced.attach(config.targets, config.rank, torch.Generator())
    epoch = TrajectoryCache(priced, plan).epoch(0)
    draw = Draw(*([where.tolist() for where in points] for points in vars(epoch.draws[0][0]).values()))
    return plan, replace(epoch, draws={0: [draw]})


def peak_bytes(base: str, pixels: int, tokens: int, checkpoint: bool) -> tuple[int, int]:
    """The peak over a pair in the steady state, with weights and the copy of the last whole pair.

    Also the weights alone.
    The tensors are fake ones of a CPU, whose fused attention keeps what a GPU's keeps.
    """
    plan, epoch = prepared(pixels, tokens)
    config = plan.config
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = true_flux(*BASES[base], device="cpu")
        weights = live.now
        lora = model.attach(config.targets, config.rank, torch.Generator())
        both = [lora_optimizer(lora, rate, config) for rate in (config.lr_low, config.lr_up)]
        run = RunState(config, lora, both, None)
        with exact_gradients(model.module, checkpoint):
            keep_states(lora, both)
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
