"""What a forward is asked to read out of its attention."""

import torch.nn.functional as F
from torch import Tensor

from ..attention.columns import attention_columns


class Capture:
    """A request for attention columns of dual blocks, and what a forward has read; see `protocols.AttentionCapture`.

    Attributes:
        select: [b, text tokens, columns], the columns as `attention_columns` takes them.
        blocks: the dual blocks to read; None is all of them, -1 the last one.
        maps: a block's index to [b, heads, image queries, columns].
    """

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
