"""Cross-attention, whose keys are the text and little else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...attention.blocks import Options
from ...attention.erase import TextLocator, TextPosition
from .block_reporters import OptionsReporter
from .joint_attention import TokenCount, check_shape, no_tokens
from .texts import Arguments, Texts


@dataclass(frozen=True)
class CrossAttention:
    """Keys [before, text, behind]; all queries are the image's.

    Attributes:
        reporter, texts, before, ahead, behind: see `JointAttention`.
        separate: arguments of a forward [b, ..., tokens, features] with an attention of their own in the same module.
        patch: latent cells a side of an image token.
    """

    reporter: OptionsReporter
    texts: Texts
    before: int = 0
    ahead: TokenCount = no_tokens
    behind: TokenCount = no_tokens
    separate: tuple[str, ...] = ()
    patch: int = 1

    def begin(
        self, options: Options, x: Tensor, select: Tensor, arguments: Arguments
    ) -> tuple[Options, Tensor, TextLocator]:
        """What one forward needs; see `JointAttention.begin`.

        Raises:
            ValueError: the text cannot be told from a reference image of the same length.
        """
        options, block_of = self.reporter.begin(options)
        select = self.texts.keys(select, arguments)
        before = self.before + self.ahead(arguments)
        expected_keys = before + select.shape[1] + self.behind(arguments)
        separate = self._separate_tokens(arguments)
        # The two attentions share a module and differ only in the number of their keys.
        if separate == expected_keys:
            raise ValueError(
                f"text and reference image both have {expected_keys} tokens: take a prompt of another length"
            )
        rows = len(select)

        def locate(attention_rows: int, keys: int, options: Options) -> TextPosition | None:
            block = block_of(options)
            if block is None or keys == separate:
                return None  # self-attention, or the one that reads the reference image
            check_shape((attention_rows, keys), (rows, expected_keys))
            # The text is in the keys alone, so every query is the image's.
            return TextPosition(block, before, slice(0, None))

        return options, select, locate

    def image_tokens(self, shape: Sequence[int]) -> int:
        """Queries of latents [b, c, ..., h, w] in the largest block, one a latent cell where nothing joins them."""
        cells = math.prod(shape[2:])
        return math.ceil(cells / self.patch**2)

    def _separate_tokens(self, arguments: Arguments) -> int:
        tokens = 0
        for name in self.separate:
            if arguments.get(name) is not None:
                tokens += arguments[name].shape[-2]
        return tokens
