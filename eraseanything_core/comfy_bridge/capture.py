"""What a forward is asked to read out of its attention."""

import torch.nn.functional as F
from torch import Tensor

from ..attention.columns import attention_columns


class Capture:
    """Asks a forward for attention columns of dual blocks, and holds them.

    Attributes:
        select: [b, text tokens, c], the columns as `attention_columns` takes them.
        blocks: the dual blocks to read; None is all of them.
        maps: a block's index to [b, heads, image queries, c], filled by the forward.
    """

    def __init__(self, select: Tensor, blocks: tuple[int, ...] | None = None):
        self.select, self.blocks = select, blocks
        self.maps: dict[int, Tensor] = {}

    def read(self, q: Tensor, k: Tensor, block: int):
        """Reads out a block; when a recomputation passes here again, the first result stays."""
        text = self.select.shape[1]
        select = F.pad(self.select, (0, 0, 0, k.shape[2] - text))
        columns = attention_columns(q[:, :, text:], k, select)
        self.maps.setdefault(block, columns)
