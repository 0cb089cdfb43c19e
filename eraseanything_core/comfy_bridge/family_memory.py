"""What backpropagation through a model of any class keeps, counted over its own blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .families.slices import text_linears
from .gradients import recomputable_blocks
from .static_copy import asked_type

# A recomputed block has its gradients beside its activations; the same ratio as measured for FLUX.1 in `memory`.
RECOMPUTED = 1.6
MODULATIONS = ("mod", "adaln")  # in the names of linears


class Activations(NamedTuple):
    """Bytes of a graph beside weights and what is trained.

    Attributes:
        kept: with the blocks kept.
        recomputed: with the blocks recomputed.
        cast: of the largest linear in the compute type, where weights are stored in another.
    """

    kept: int
    recomputed: int
    cast: int


def count_activations(module: nn.Module, tokens: int, batch: int, itemsize: int) -> Activations:
    """What a graph over the module's blocks keeps.

    A block keeps about what the linears of its tokens read and write: 16 hidden states in FLUX.1's dual blocks and 14
    in its single ones, where 15.3 were measured.

    Args:
        module: the diffusion model.
        tokens: image and text tokens of one sequence.
        batch: sequences of one forward.
        itemsize: bytes of the compute type.
    """
    unit = tokens * batch * itemsize
    blocks = recomputable_blocks(module)
    of_text = {module.get_submodule(path) for path in text_linears(module)}
    kept = []
    for block in blocks:
        # Where the text has a stream of its own, every token goes through the linears of one stream alone.
        streams = 2 if any(layer in of_text for layer in block.modules()) else 1
        kept.append(unit * _features(block) // streams)
    inputs = unit * sum(_width(block) for block in blocks)
    return Activations(sum(kept), inputs + int(RECOMPUTED * max(kept)), _cast(module, itemsize))


def _features(block: nn.Module) -> int:
    features = 0
    for name, layer in block.named_modules():
        # A modulation reads one vector a sequence, and no tokens.
        if hasattr(layer, "in_features") and not any(mark in name.lower() for mark in MODULATIONS):
            features += layer.in_features + layer.out_features
    return features


def _width(block: nn.Module) -> int:
    return max(linear.in_features for linear in _linears(block)[:1])


def _linears(module: nn.Module) -> Sequence[Any]:
    return [layer for layer in module.modules() if hasattr(layer, "in_features")]


def _cast(module: nn.Module, itemsize: int) -> int:
    largest = max(_linears(module), key=lambda linear: linear.in_features * linear.out_features)
    stored = asked_type(largest, "weight") or largest.weight.dtype
    return 0 if stored.itemsize == itemsize else itemsize * largest.in_features * largest.out_features
