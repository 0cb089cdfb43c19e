"""Columns of the attention matrix, exact and differentiable, without the matrix."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_columns(q: Tensor, k: Tensor, select: Tensor, mask: Tensor | None = None) -> Tensor:
    """W @ select with W = softmax(q k^T / sqrt(d) + mask): the post-softmax weight of chosen keys over all keys.

    One attention call whose values are `select` itself, so any fused kernel gives it with exact gradients to q and
    k, in memory linear in the number of tokens. A one-hot column of `select` reads out a column of W; a column with
    ones at several keys reads out their sum.

    Args:
        q: [b, h, queries, d], after RMSNorm and RoPE.
        k: [b, h, keys, d], likewise.
        select: [b, keys, c] with c <= d.
        mask: expands to [b, h, queries, keys]; bool, true where a key is attended to, or added to the logits.

    Returns:
        [b, h, queries, c].
    """
    return columns_view(q, k, select, mask).contiguous()  # a view would keep all d of them alive


def columns_view(q: Tensor, k: Tensor, select: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same as a view of d columns, for what is used up at once."""
    b, h, _, d = q.shape
    values = F.pad(select.to(q), (0, d - select.shape[-1]))  # b keys d
    values = values[:, None].expand(b, h, -1, -1)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q)
    return F.scaled_dot_product_attention(q, k, values, attn_mask=mask)[..., : select.shape[-1]]


def image_feature(maps: dict[int, Tensor]) -> Tensor:
    """One number an image query: the captured column, mean over heads and blocks.

    Args:
        maps: a block's index to [b, h, queries, 1].

    Returns:
        [b, queries], float32 (or wider).
    """
    blocks = [m[..., 0].float() if m.dtype.itemsize < 4 else m[..., 0] for m in maps.values()]  # b h queries
    return sum(m.mean(dim=1) for m in blocks) / len(blocks)


@dataclass(frozen=True)
class Blocks:
    """A choice of attention blocks as a user types it: `all`, `dual`, `single 0-18`, `dual 3, single 0-4`.

    Raises:
        ValueError: the text is no choice of blocks.
    """

    text: str

    def __post_init__(self):
        _ = self.parts  # a wrong text is refused where it is typed

    @cached_property
    def parts(self) -> list[tuple[str, int, float]]:
        """(kind, first index, last index) of every part; "double" is what ComfyUI calls a dual block."""
        found = []
        for part in self.text.lower().split(","):
            match = re.fullmatch(r"\s*(all|dual|single)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*", part)
            if not match:
                raise ValueError(f"{part.strip()!r} is no choice of blocks: write all, dual, single, or dual 0-5")
            kind, first, last = match.groups()
            span = (int(first or 0), int(last or first or 10**6))
            found += [(name, *span) for name in {"all": ("double", "single"), "dual": ("double",)}.get(kind, (kind,))]
        return found

    def __contains__(self, block: tuple[str, int]) -> bool:
        return any(kind == block[0] and first <= block[1] <= last for kind, first, last in self.parts)

    def check(self, dual: int, single: int):
        """Raises ValueError when the choice takes no block of a model."""
        present = [*(("double", i) for i in range(dual)), *(("single", i) for i in range(single))]
        if not any(block in self for block in present):
            raise ValueError(
                f"no block is chosen by {self.text!r}: the model has {dual} dual and {single} single blocks"
            )


class Place(NamedTuple):
    """Where one attention stands, and the text in it.

    Attributes:
        block: its kind and index.
        text: the key at which the prompt's tokens begin.
        image: the queries that are the image's.
    """

    block: tuple[str, int]
    text: int
    image: slice


Placer = Callable[[int, int, dict], Place | None]  # of rows, keys and transformer options; None: no text is attended to
