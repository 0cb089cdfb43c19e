"""How much memory backpropagation will take, and what to do so that it fits."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management as model_management
import torch
from comfy.ldm.flux.model import FluxParams

from ..protocols import GIB
from .attention_memory import FUSED, AttentionCost, attention_cost
from .families import is_flux_1
from .family_memory import count_activations
from .static_copy import asked_type, static_bytes

# What a block leaves for backward, and what a recomputed one needs at once, in units of tokens x width x bytes of the
# compute type. Measured by `python scripts/dev.py bench memory` on the code that runs.
KEPT_PER_BLOCK = 15.4
RECOMPUTED_BLOCK = 28.3
# Of an attention that keeps its matrices: the weights, their gradient and that of the logits are alive at once.
MATRICES_IN_BACKWARD = 3


@dataclass(frozen=True)
class MemoryPlan:
    """A way to backpropagate, and what it takes in bytes. See `protocols.MemoryEstimate`.

    Attributes:
        gradient_checkpointing: blocks are recomputed in backward.
        activations: everything beside the weights.
        weights: of the model.
        free: what the device has for activations and weights together.
        forward: what ComfyUI keeps free of weights in any case.
    """

    gradient_checkpointing: bool
    activations: int
    weights: int
    free: int
    forward: int = 0

    @property
    def offloaded(self) -> int:
        """Bytes of weights that stay in main memory and are cast layer by layer."""
        excess = self.weights + max(self.activations, self.forward) - self.free
        return max(0, min(self.weights, excess))

    def __str__(self) -> str:
        peak = (self.activations + self.weights - self.offloaded) / GIB
        blocks = "recomputed in backward" if self.gradient_checkpointing else "kept for backward"
        text = f"estimated peak {peak:.1f} GiB of {self.free / GIB:.1f} GiB free; blocks are {blocks}"
        if self.offloaded:
            text += f"; {self.offloaded / GIB:.1f} GiB of weights stay in main memory"
        # Offloading makes room by moving weights; activations have to lie on the device.
        if self.activations > self.free:
            text += "; it may not fit: lower the resolution or the batch"
        return text


def activation_bytes(
    params: FluxParams,
    tokens: int,
    batch: int,
    itemsize: int,
    gradient_checkpointing: bool,
    cast: int,
    trained: int,
    attention: AttentionCost = FUSED,
) -> int:
    """Bytes of the largest graph beside the weights.

    Args:
        params: the shape of the model.
        tokens: image and text tokens of one sequence.
        batch: sequences of one forward.
        itemsize: bytes of the compute type.
        gradient_checkpointing: blocks are recomputed.
        cast: bytes of the largest linear in the compute type, 0 where weights are used as they are stored.
        trained: bytes of what is trained, its gradients and its optimisers.
        attention: what one attention keeps.
    """
    blocks = params.depth + params.depth_single_blocks
    # The bytes of one hidden state of the whole batch.
    unit = tokens * batch * params.hidden_size * itemsize
    # With recomputation each block still keeps its input, one unit; a single block at a time has all the rest.
    units = blocks + RECOMPUTED_BLOCK if gradient_checkpointing else KEPT_PER_BLOCK * blocks
    matrix, others = attention.kept_bytes(tokens, batch * params.num_heads)
    # A double block has two: its own, and the one that reads the columns of a word. Recomputed, one is alive at a time.
    attentions = 1 if gradient_checkpointing else blocks + params.depth
    unfused = attentions * (matrix + others) + (MATRICES_IN_BACKWARD - 1) * matrix
    return int(attention.factor * (unit * units + unfused + cast + trained))


def cheapest_plan(free: int, weights: int, kept: int, recomputed: int, forward: int = 0) -> MemoryPlan:
    """Keeps the blocks where that fits beside the weights, else recomputes them, and offloads what is still too much.

    Args:
        free, weights, forward: see `MemoryPlan`.
        kept: bytes of activations with the blocks kept.
        recomputed: bytes of activations with the blocks recomputed.
    """
    # Recomputing costs a forward more in backward, offloading a transfer of weights in every forward.
    plain = MemoryPlan(False, kept, weights, free, forward)
    if not plain.offloaded:
        return plain
    return MemoryPlan(True, recomputed, weights, free, forward)


def plan_memory(patcher: Any, tokens: int, batch: int, dtype: torch.dtype, trained: int, forward: int) -> MemoryPlan:
    """The way of backpropagation that fits this model on its device now.

    Args:
        patcher: the MODEL.
        tokens, batch, trained: see `activation_bytes`.
        dtype: the compute type.
        forward: bytes that ComfyUI wants for a forward.
    """
    reserved = model_management.extra_reserved_memory()
    # Weights of this model that are on the device already make room for themselves.
    free = model_management.get_free_memory(patcher.load_device) + loaded_bytes(patcher) - reserved
    # ComfyUI's loader keeps at least this much free, whatever it is asked for.
    forward = max(forward, int(model_management.minimum_inference_memory()) - reserved)
    module = patcher.model.diffusion_model
    if not is_flux_1(patcher.model):
        counted = count_activations(module, tokens, batch, dtype.itemsize)
        others = counted.cast + trained
        weights = static_bytes(patcher)
        return cheapest_plan(free, weights, counted.kept + others, counted.recomputed + others, forward)
    params = module.params
    linear = module.single_blocks[0].linear1
    stored = asked_type(linear, "weight") or linear.weight.dtype
    cast = 0
    itemsize = dtype.itemsize
    if stored.itemsize != itemsize:
        # fp8 and GGUF weights are unpacked layer by layer; linear1 of a single block is the largest.
        cast = itemsize * params.hidden_size * int(params.hidden_size * (3 + params.mlp_ratio))
    attention = attention_cost(patcher.load_device, dtype, params.hidden_size // params.num_heads)
    kept = activation_bytes(params, tokens, batch, itemsize, False, cast, trained, attention)
    recomputed = activation_bytes(params, tokens, batch, itemsize, True, cast, trained, attention)
    return cheapest_plan(free, static_bytes(patcher), kept, recomputed, forward)


def loaded_bytes(patcher: Any) -> int:
    """Bytes of the model that are on its device already."""
    total = 0
    for loaded in model_management.current_loaded_models:
        # The list holds weak references; a clone of the MODEL counts, for clones share their weights.
        if loaded.model is not None and loaded.model.model is patcher.model:
            total += loaded.model_loaded_memory()
    return total
