"""Columns of the attention matrix, exact and differentiable, without the matrix."""

import torch.nn.functional as F
from torch import Tensor


def attention_columns(q: Tensor, k: Tensor, select: Tensor) -> Tensor:
    """W @ select with W = softmax(q k^T / sqrt(d)): the post-softmax weight of chosen keys over all keys.

    One attention call whose values are `select` itself, so any fused kernel gives it with exact gradients to q and
    k, in memory linear in the number of tokens. A one-hot column of `select` reads out a column of W; a column with
    ones at several keys reads out their sum.

    Args:
        q: [b, h, queries, d], after RMSNorm and RoPE.
        k: [b, h, keys, d], likewise.
        select: [b, keys, c] with c <= d.

    Returns:
        [b, h, queries, c].
    """
    b, h, _, d = q.shape
    values = F.pad(select.to(q), (0, d - select.shape[-1]))  # b keys d
    values = values[:, None].expand(b, h, -1, -1)
    columns = F.scaled_dot_product_attention(q, k, values)[..., : select.shape[-1]]
    return columns.contiguous()  # a view would keep all d of them alive


def image_feature(maps: dict[int, Tensor]) -> Tensor:
    """One number an image query: the captured column, mean over heads and blocks.

    Args:
        maps: a block's index to [b, h, queries, 1].

    Returns:
        [b, queries], float32 (or wider).
    """
    blocks = [m[..., 0].float() if m.dtype.itemsize < 4 else m[..., 0] for m in maps.values()]  # b h queries
    return sum(m.mean(dim=1) for m in blocks) / len(blocks)
