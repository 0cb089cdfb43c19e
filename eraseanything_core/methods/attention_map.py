"""The paper's training-free eraser (section 3): the concept's columns of the attention are scaled, or deleted.

No matrix is needed. W @ v with columns of W scaled is W @ (v with the same rows scaled). With the rows of W scaled to
sum to one again it is the softmax with log(scale) added to the logits of those keys.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Blocks


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


def without_columns(v: Tensor, select: Tensor, strength: float = 0.0) -> Tensor:
    """Values [b, h, keys, d] with the rows of the selected text keys scaled.

    Args:
        select: [b, text tokens], one at each key whose column of the attention is scaled; text keys come first.
    """
    return v * _factor(v, select, strength)[:, None, :, None].to(v)


def column_bias(k: Tensor, select: Tensor, strength: float, mask: Tensor | None = None) -> Tensor:
    """log(scale) of each key, [b, 1, 1, keys], -inf where it is 0; an attention mask that is there is added."""
    bias = _factor(k, select, strength).log()[:, None, None].to(k)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=k.dtype).masked_fill(~mask, float("-inf"))
    return bias + (mask[:, None] if mask.ndim == 3 else mask)


def _factor(keys: Tensor, select: Tensor, strength: float) -> Tensor:
    """[b, keys]: the strength at selected text keys, one elsewhere."""
    return F.pad(1 - (1 - strength) * select.to(keys.device), (0, keys.shape[2] - select.shape[1]), value=1.0)


def override(select: Tensor, config: MapErasure = DELETION, before=None):
    """For `transformer_options["optimized_attention_override"]` of ComfyUI's Flux.

    Args:
        select: [b, text tokens], see `without_columns`.
        config: how columns are scaled.
        before: an override that is there already; it computes the attention.
    """

    def attend(attention, q, k, v, heads, mask=None, **rest):
        run, options = partial(before, attention) if before else attention, rest["transformer_options"]
        if (options["block_type"], options["block_index"]) not in config.blocks:
            return run(q, k, v, heads, mask=mask, **rest)
        if not config.image_only:
            return _scaled(run, q, k, v, heads, mask, select, config, rest)
        text, masks = select.shape[1], (mask, mask)
        if mask is not None and mask.shape[-2] > 1:
            masks = mask[..., :text, :], mask[..., text:, :]
        words = run(q[:, :, :text], k, v, heads, mask=masks[0], **rest)
        return torch.cat((words, _scaled(run, q[:, :, text:], k, v, heads, masks[1], select, config, rest)), dim=1)

    return attend


def _scaled(run, q, k, v, heads, mask, select, config, rest) -> Tensor:
    if config.renormalise:
        mask = column_bias(k, select, config.strength, mask)
    else:
        v = without_columns(v, select, config.strength)
    return run(q, k, v, heads, mask=mask, **rest)
