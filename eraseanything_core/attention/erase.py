"""The paper's training-free eraser (section 3): the concept's columns of the attention are scaled, or deleted.

No matrix is needed. W @ v with columns of W scaled is W @ (v with the same rows scaled). With the rows of W scaled to
sum to one again it is the softmax with log(scale) added to the logits of those keys.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .columns import Blocks, Place, Placer


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


DELETION = MapErasure()  # the paper's


def without_columns(v: Tensor, select: Tensor, strength: float = 0.0, first: int = 0, axis: int = 2) -> Tensor:
    """Values [b, h, keys, d] with the rows of the selected text keys scaled.

    Args:
        select: [b, text tokens], one at each key whose column of the attention is scaled.
        first: the key at which the text begins.
        axis: where the values have their keys, when not as above.
    """
    factor = _factor(v.shape[axis], select, strength, first).to(v)
    return v * factor.view([len(factor), *(factor.shape[1] if i == axis else 1 for i in range(1, v.ndim))])


def column_bias(
    k: Tensor, select: Tensor, strength: float, mask: Tensor | None = None, first: int = 0, axis: int = 2
) -> Tensor:
    """log(scale) of each key, [b, 1, 1, keys], -inf where it is 0; an attention mask that is there is added."""
    bias = _factor(k.shape[axis], select, strength, first).log()[:, None, None].to(k)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=k.dtype).masked_fill(~mask, float("-inf"))
    return bias + (mask[:, None] if mask.ndim == 3 else mask)


def _factor(keys: int, select: Tensor, strength: float, first: int) -> Tensor:
    """[b, keys]: the strength at selected text keys, one elsewhere."""
    return F.pad(1 - (1 - strength) * select, (first, keys - first - select.shape[1]), value=1.0)


def flux(text: int) -> Placer:
    """Places the attention of ComfyUI's Flux, where the tokens of the text stand before the image's."""
    return lambda rows, keys, options: Place((options["block_type"], options["block_index"]), 0, slice(text, None))


def override(select: Tensor, config: MapErasure = DELETION, before=None, placer: Placer | None = None):
    """For `transformer_options["optimized_attention_override"]`.

    Args:
        select: [b, text tokens], see `without_columns`.
        config: how columns are scaled.
        before: an override that is there already; it computes the attention.
        placer: says where the text stands; None is for ComfyUI's Flux.
    """
    placer = placer or flux(select.shape[1])

    def attend(attention, q, k, v, heads, mask=None, **rest):
        run = partial(before, attention) if before else attention
        axis = 2 if rest.get("skip_reshape") else 1  # of the tokens in q, k and v
        place = placer(len(k), k.shape[axis], rest["transformer_options"])
        if place is None or place.block not in config.blocks:
            return run(q, k, v, heads, mask=mask, **rest)
        first, end, _ = (place.image if config.image_only else slice(None)).indices(q.shape[axis])
        single = mask is None or mask.shape[-2] == 1  # row, for all queries
        masks = [mask] * 3 if single else mask.tensor_split([first, end], dim=-2)
        if config.renormalise:
            erased = v, column_bias(k, select, config.strength, masks[1], place.text, axis)
        else:
            erased = without_columns(v, select, config.strength, place.text, axis), masks[1]
        parts = zip(q.tensor_split([first, end], dim=axis), (v, erased[0], v), (masks[0], erased[1], masks[2]))
        found = [run(rows, k, values, heads, mask=own, **rest) for rows, values, own in parts if rows.shape[axis]]
        return torch.cat(found, dim=-2) if len(found) > 1 else found[0]

    return attend
