"""Columns of the attention matrix, exact and differentiable, without the matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_columns(q: Tensor, k: Tensor, select: Tensor, mask: Tensor | None = None) -> Tensor:
    """W @ select with W = softmax(q k^T / sqrt(d) + mask): the post-softmax weight of chosen keys over all keys.

    One attention call whose values are `select` itself. Any fused kernel computes it with exact gradients to q and k,
    in memory linear in the number of tokens. A one-hot column of `select` reads out a column of W; a column with
    ones at several keys reads out their sum.

    Args:
        q: [b, h, queries, d], after RMSNorm and RoPE.
        k: [b, h, keys, d], likewise.
        select: [b, keys, c] with c <= d.
        mask: expands to [b, h, queries, keys]; bool, true where a key is attended to, or added to the logits.

    Returns:
        [b, h, queries, c].
    """
    # A view would keep all d columns alive, in a training graph for as long as the graph lives.
    return columns_view(q, k, select, mask).contiguous()


def columns_view(q: Tensor, k: Tensor, select: Tensor, mask: Tensor | None = None) -> Tensor:
    """Like `attention_columns`, as a view of d columns; for a result that is used up at once."""
    batch, heads, _, width = q.shape
    count = select.shape[-1]
    # Fused kernels want values as wide as the keys, so the unused columns are zero.
    values = F.pad(select.to(q), (0, width - count))  # [b, keys, d]
    values = values[:, None].expand(batch, heads, -1, -1)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q)
    return F.scaled_dot_product_attention(q, k, values, attn_mask=mask)[..., :count]


def image_feature(maps: dict[int, Tensor]) -> Tensor:
    """One number an image query: the captured column, mean over heads and blocks.

    This is F in Eq. 5 of the paper, the feature that the contrastive loss compares.

    Args:
        maps: a block's index to [b, h, queries, 1].

    Returns:
        [b, queries], float32 (or wider).
    """
    means = []
    for columns in maps.values():
        column = columns[..., 0]  # [b, h, queries]
        # A softmax over thousands of keys has entries that bf16 would lose in a sum.
        wide = column.float() if column.dtype.itemsize < 4 else column
        means.append(wide.mean(dim=1))
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return total / len(means)
