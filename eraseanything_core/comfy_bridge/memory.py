"""How much memory backpropagation will take, and what to do so that it fits."""

from dataclasses import dataclass

import comfy.model_management

from ..training.optimizers import KEPT as KEPT_BY

GIB = 2**30
# What a block leaves for backward, and a recomputed one needs at once, in units of tokens x width x bytes of the
# compute type; measured by `python scripts/dev.py bench memory` on the code that runs.
KEPT, RECOMPUTED = 15.3, 25.0
MASTERS = 12  # bytes a LoRA weight: itself, its gradient and its copy of the last whole pair, float32


@dataclass(frozen=True)
class Fit:
    """A way to backpropagate, and what it takes in bytes.

    Attributes:
        checkpoint: blocks are recomputed in backward.
        activations: all but the weights.
        weights: of the model.
        free: what the device has for both.
        least: what ComfyUI keeps free of weights in any case.
    """

    checkpoint: bool
    activations: int
    weights: int
    free: int
    least: int = 0

    @property
    def offloaded(self) -> int:
        """Weights that stay in main memory and are cast layer by layer."""
        return max(0, min(self.weights, self.weights + max(self.activations, self.least) - self.free))

    def __str__(self) -> str:
        peak, free = (self.activations + self.weights - self.offloaded) / GIB, self.free / GIB
        told = f"estimated peak {peak:.1f} GiB of {free:.1f} GiB free; blocks are "
        told += "recomputed in backward" if self.checkpoint else "kept for backward"
        if self.offloaded:
            told += f"; {self.offloaded / GIB:.1f} GiB of weights stay in main memory"
        return told + ("" if self.activations <= self.free else "; it may not fit: lower the resolution or the batch")


def activations(params, tokens: int, batch: int, itemsize: int, checkpoint: bool, cast: int, masters: int) -> int:
    """Bytes of a pair's larger graph beside the weights.

    Args:
        params: the shape of the model, ComfyUI's FluxParams.
        tokens: image and text tokens of one sequence.
        batch: sequences of one forward.
        itemsize: bytes of the compute type.
        checkpoint: blocks are recomputed.
        cast: bytes of the largest linear in the compute type, 0 where weights are used as they lie.
        masters: bytes of the LoRA, see `master_bytes`.
    """
    blocks, unit = params.depth + params.depth_single_blocks, tokens * batch * params.hidden_size * itemsize
    return int(unit * (blocks + RECOMPUTED if checkpoint else KEPT * blocks)) + cast + masters


def master_bytes(config, weights: int) -> int:
    """Bytes of a LoRA of so many weights with its gradient and its optimisers; two of them take turns.

    Of the last whole pair there is a copy, see `trainer.Run.keep`.
    """
    return weights * (MASTERS + 2 * KEPT_BY[config.optimizer] * (2 if config.alternate else 1))


def fitted(free: int, weights: int, kept: int, recomputed: int, least: int = 0) -> Fit:
    """Blocks are kept where that fits beside the weights, else recomputed; what then is too much is offloaded."""
    plain = Fit(False, kept, weights, free, least)
    return plain if not plain.offloaded else Fit(True, recomputed, weights, free, least)


def fit(patcher, tokens: int, batch: int, itemsize: int, held: int, least: int) -> Fit:
    """The way that fits this model and device.

    Args:
        patcher: the MODEL.
        tokens, batch, itemsize: see `activations`.
        held: bytes of what is trained.
        least: what ComfyUI wants for a forward.
    """
    module = patcher.model.diffusion_model
    params, width, linear = module.params, module.params.hidden_size, module.single_blocks[0].linear1.weight
    cast = itemsize * width * int(width * (3 + params.mlp_ratio)) if linear.dtype.itemsize != itemsize else 0
    sizes = (activations(params, tokens, batch, itemsize, on, cast, held) for on in (False, True))
    management, reserved = comfy.model_management, comfy.model_management.extra_reserved_memory()
    free = management.get_free_memory(patcher.load_device) + loaded_bytes(patcher) - reserved
    return fitted(free, patcher.model_size(), *sizes, max(least, int(management.minimum_inference_memory()) - reserved))


def loaded_bytes(patcher) -> int:
    """What of the model lies on its device already."""
    loaded = comfy.model_management.current_loaded_models
    return sum(m.model_loaded_memory() for m in loaded if m.model is not None and m.model.model is patcher.model)
