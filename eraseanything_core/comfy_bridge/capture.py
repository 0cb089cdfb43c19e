"""What a forward is asked to read out of its attention."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.columns import attention_columns


class Capture:
    """A request for attention columns of dual blocks, and what a forward has read; see `protocols.AttentionCapture`.

    Attributes:
        select: [b, text tokens, columns], the columns as `attention_columns` takes them.
        blocks: the dual blocks to read; None is all of them, -1 the last one.
        single: whether all single blocks are read as well, which are numbered on from the dual ones.
        maps: a block's index to [b, heads, image queries, columns].
    """

    single = False

    def __init__(self, select: Tensor, blocks: tuple[int, ...] | None = None):
        self.select = select
        self.blocks = blocks
        self.maps: dict[int, Tensor] = {}

    def read(self, q: Tensor, k: Tensor, block: int) -> None:
        """Reads the columns of one block.

        Args:
            q, k: [b, heads, text and image tokens, d], after norms and RoPE; the text stands in front.
            block: its index.
        """
        # Flux puts the text in front of the image, so the image's queries are those from here on.
        text_tokens = self.select.shape[1]
        # The softmax goes over all keys, so the image's keys are there too, with a weight of zero.
        select = F.pad(self.select, (0, 0, 0, k.shape[2] - text_tokens))
        columns = attention_columns(q[:, :, text_tokens:], k, select)
        # A block that is recomputed in backward passes here a second time. The loss hangs on the first result.
        self.maps.setdefault(block, columns)


def merged(parts: Sequence[dict[int, Tensor]], order: Tensor) -> dict[int, Tensor]:
    """The maps of a batch that ran in several forwards.

    Args:
        parts: a block's index to [rows of the forward, heads, image queries, columns].
        order: [b], where each row of the batch stands among the rows of all forwards.
    """
    if len(parts) == 1:
        return parts[0]
    maps = {}
    for block, first in parts[0].items():
        columns = torch.cat([part[block] for part in parts])
        maps[block] = columns[order.to(first.device)]
    return maps


def of_one_size(maps: dict[int, Tensor]) -> dict[int, Tensor]:
    """The maps of the blocks with the commonest number of image queries; a U-Net's blocks differ in it.

    Of two that are equally common it is the smaller one, where a query stands for more of the picture.
    """
    counts = Counter(columns.shape[2] for columns in maps.values())
    if len(counts) < 2:
        return maps
    size = max(counts, key=lambda queries: (counts[queries], -queries))
    return {block: columns for block, columns in maps.items() if columns.shape[2] == size}
