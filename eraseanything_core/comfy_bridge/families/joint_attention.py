"""Attention over one sequence of text and image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...attention.blocks import Options
from ...attention.erase import TextLocator, TextPosition
from .block_reporters import OptionsReporter
from .texts import Arguments, Texts

TokenCount = Callable[[Arguments], int]  # tokens that the arguments of a forward add


def no_tokens(arguments: Arguments) -> int:
    """The arguments of a forward add nothing."""
    return 0


def tokens_of(*names: str) -> TokenCount:
    """Counts the tokens of those arguments [b, tokens, ...] that a forward is given."""

    def count(arguments: Arguments) -> int:
        tokens = 0
        for name in names:
            if arguments.get(name) is not None:
                tokens += arguments[name].shape[1]
        return tokens

    return count


@dataclass(frozen=True)
class JointAttention:
    """One sequence of text and image.

    Its keys are [before, text, behind, image], or [image, before, text, behind]. The queries are the same sequence,
    or its last part.

    Attributes:
        reporter: how its attention learns the block.
        texts: the encodings of the prompt that it takes.
        patch: latent pixels a side of an image token, or one number for each of the last dimensions.
        before: tokens of the model's own in front of the text.
        ahead, behind: how many further tokens a forward's arguments put in front of the text and behind it.
        multiple: text and image are each padded to a multiple of it.
        references: the argument of a forward that lists further images, where the model does not count them itself.
        after: how many tokens of further images, or of sounds, a forward's arguments hold in another form.
        image_first: whether the image stands in front of the text.
    """

    reporter: OptionsReporter
    texts: Texts
    patch: int | Sequence[int]
    before: int = 0
    ahead: TokenCount = no_tokens
    behind: TokenCount = no_tokens
    multiple: int = 1
    references: str = ""
    after: TokenCount = no_tokens
    image_first: bool = False

    def begin(
        self, options: Options, x: Tensor, select: Tensor, arguments: Arguments
    ) -> tuple[Options, Tensor, TextLocator]:
        """What one forward needs: its transformer options, the columns of its text keys, and where they stand.

        Args:
            options: the transformer options.
            x: latents [b, c, ..., h, w]; where others are packed with them, `arguments` has the shapes.
            select: [b, tokens], the columns of the encodings.
            arguments: the other arguments of the forward.

        Returns:
            The options for the forward; [b, keys], the columns of the text keys; a function that locates the text in
            each attention. It raises ValueError where an attention has other keys than were counted here.
        """
        options, block_of = self.reporter.begin(options)
        select = self.texts.keys(select, arguments)
        latent_shape = arguments.get("latent_shapes", (x.shape,))[0]
        image = self._padded(self.image_tokens(latent_shape))
        before = self.before + self.ahead(arguments)
        text_side = before + self._padded(select.shape[1]) + self.behind(arguments)
        other_images = self._reference_tokens(arguments)
        rows = len(select)

        def locate(attention_rows: int, keys: int, options: Options) -> TextPosition | None:
            block = block_of(options)
            if block is None or keys == image:
                return None  # what refines text and image alone, and the image's own attention in SD 3.5
            # Some models count their reference images themselves, in the options.
            images = image + sum(options.get("reference_image_num_tokens", (other_images,)))
            check_shape((attention_rows, keys), (rows, text_side + images))
            if self.image_first:
                return TextPosition(block, images + before, slice(0, images))
            # From the end: where the queries are only the last part of the sequence, the image is still at their end.
            return TextPosition(block, before, slice(-images, None))

        return options, select, locate

    def _padded(self, count: int) -> int:
        return math.ceil(count / self.multiple) * self.multiple

    def image_tokens(self, shape: Sequence[int]) -> int:
        """Tokens of latents [b, c, ..., h, w]; an incomplete patch counts as a whole one."""
        patch = (self.patch, self.patch) if isinstance(self.patch, int) else tuple(self.patch)
        sizes = shape[2:]
        # A video's frames, in front of height and width, are not joined where the patch does not say so.
        sides = (1,) * (len(sizes) - len(patch)) + patch
        return math.prod(math.ceil(size / side) for size, side in zip(sizes, sides, strict=True))

    def _reference_tokens(self, arguments: Arguments) -> int:
        references = arguments.get(self.references) or ()
        return sum(self.image_tokens(latents.shape) for latents in references) + self.after(arguments)


def check_shape(actual: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raises ValueError when an attention's rows and keys are not those of the prompt and the image."""
    if actual != expected:
        raise ValueError(
            f"the attention has {actual[1]} keys in {actual[0]} rows where {expected[1]} in {expected[0]} were "
            "expected: another node adds tokens or rows, and where the text stands is not certain; use AttentionErase "
            "without it"
        )
