"""The paper's training-free eraser (section 3): the concept's columns of the attention are scaled, or deleted.

No matrix is needed. W @ v with columns of W scaled is W @ (v with the same rows scaled). Where the rows of W have to
sum to one again, it is the softmax with log(scale) added to the logits of those keys.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Block, Blocks

AttentionOverride = Callable[..., Tensor]  # of ComfyUI's `optimized_attention_override`


class TextPosition(NamedTuple):
    """Where one attention is, and where the text is in it.

    Attributes:
        block: its kind and index.
        text: the key at which the prompt's tokens begin.
        image: the queries that are the image's.
    """

    block: Block
    text: int
    image: slice


# Of an attention's rows, keys and transformer options; None: no text is attended to here.
TextLocator = Callable[[int, int, dict[str, Any]], TextPosition | None]


@dataclass(frozen=True)
class MapErasure:
    """How columns are scaled.

    Attributes:
        strength: s, what is left of a column; 0 is the paper's deletion, 1 changes nothing.
        renormalise: whether the rows sum to one again.
        blocks: whose attention it is.
        image_only: whether only the image's queries lose the columns, and the text's keep them.
    """

    strength: float = 0.0
    renormalise: bool = False
    blocks: Blocks = Blocks("dual")
    image_only: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a strength that is no number: NaN passes the check of a widget's range."""
        if not math.isfinite(self.strength):
            raise ValueError(f"strength is {self.strength}: set a number")


DELETION = MapErasure()  # the paper's


def without_columns(v: Tensor, select: Tensor, strength: float = 0.0, first: int = 0, axis: int = 2) -> Tensor:
    """Values with the rows of the selected text keys scaled, so that W @ v is as with scaled columns of W.

    Args:
        v: [b, heads, keys, d], or with the keys at another axis.
        select: [b, text tokens], one at each key whose column of the attention is scaled.
        strength: what is left of a column.
        first: the key at which the text begins.
        axis: where the values have their keys.
    """
    factors = _key_factors(v.shape[axis], select, strength, first).to(v)  # [b, keys]
    shape = [1] * v.ndim
    shape[0] = factors.shape[0]
    shape[axis] = factors.shape[1]
    return v * factors.view(shape)


def column_bias(
    k: Tensor, select: Tensor, strength: float, mask: Tensor | None = None, first: int = 0, axis: int = 2
) -> Tensor:
    """log(scale) of each key, [b, 1, 1, keys], -inf where it is 0; an attention mask that is there is added.

    Args:
        k: [b, heads, keys, d], or with the keys at another axis.
        select, strength, first, axis: see `without_columns`.
        mask: of the same attention, bool or added to the logits.
    """
    # e^(logit + log s) = s e^logit: the weight is scaled before the softmax divides by the sum.
    bias = _key_factors(k.shape[axis], select, strength, first).log()[:, None, None].to(k)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        # True means attended to, as in PyTorch; a sum of logits needs 0 and -inf instead.
        mask = torch.zeros_like(mask, dtype=k.dtype).masked_fill(~mask, float("-inf"))
    per_head = mask[:, None] if mask.ndim == 3 else mask
    return bias + per_head


def _key_factors(keys: int, select: Tensor, strength: float, first: int) -> Tensor:
    """[b, keys]: the strength at selected text keys, one elsewhere."""
    behind = keys - first - select.shape[1]
    return F.pad(1 - (1 - strength) * select, (first, behind), value=1.0)


def flux_locator(text: int) -> TextLocator:
    """Locates the text in the attention of ComfyUI's Flux: its `text` tokens come first, then the image's."""

    def locate(rows: int, keys: int, options: dict[str, Any]) -> TextPosition:
        return TextPosition((options["block_type"], options["block_index"]), 0, slice(text, None))

    return locate


def override(
    select: Tensor,
    config: MapErasure = DELETION,
    before: AttentionOverride | None = None,
    locator: TextLocator | None = None,
) -> AttentionOverride:
    """An attention with scaled columns, for `transformer_options["optimized_attention_override"]`.

    Args:
        select: [b, text tokens], see `without_columns`.
        config: how columns are scaled.
        before: an override that is there already; it computes the attention.
        locator: says where the text is; None is for ComfyUI's Flux.
    """
    locate = locator or flux_locator(select.shape[1])

    def attend(
        attention: AttentionOverride,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        # An override gets ComfyUI's own function first; another pack's override takes it in turn.
        run = partial(before, attention) if before else attention
        # ComfyUI calls with [b, tokens, heads * d], or with [b, heads, tokens, d] and skip_reshape.
        axis = 2 if rest.get("skip_reshape") else 1
        position = locate(len(k), k.shape[axis], rest["transformer_options"])
        if position is None or position.block not in config.blocks:
            return run(q, k, v, heads, mask=mask, **rest)
        queries = position.image if config.image_only else slice(None)
        first, end, _ = queries.indices(q.shape[axis])
        masks = _split_mask(mask, first, end)
        erased_values = v
        erased_mask = masks[1]
        if config.renormalise:
            erased_mask = column_bias(k, select, config.strength, masks[1], position.text, axis)
        else:
            erased_values = without_columns(v, select, config.strength, position.text, axis)
        # Queries do not see each other in one attention, so their rows can be computed apart.
        outputs = []
        for rows, values, own in zip(
            q.tensor_split([first, end], dim=axis),
            (v, erased_values, v),
            (masks[0], erased_mask, masks[2]),
            strict=True,
        ):
            if rows.shape[axis]:
                outputs.append(run(rows, k, values, heads, mask=own, **rest))
        # Whatever shape went in, ComfyUI's attention returns the tokens at the last but one axis.
        return torch.cat(outputs, dim=-2) if len(outputs) > 1 else outputs[0]

    return attend


def _split_mask(mask: Tensor | None, first: int, end: int) -> list[Tensor | None]:
    """The masks of the queries before `first`, up to `end` and behind it; one row is for all queries alike."""
    if mask is None or mask.shape[-2] == 1:
        return [mask, mask, mask]
    return list(mask.tensor_split([first, end], dim=-2))
