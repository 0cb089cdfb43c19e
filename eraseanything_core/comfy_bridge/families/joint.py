"""Attention over one sequence of text and image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...attention.columns import Place, Placer
from .reporting import Telling
from .texts import Texts


def nothing(given: dict) -> int:
    return 0


def tokens_of(*names: str) -> Callable[[dict], int]:
    """Counts the tokens of those arguments [b, tokens, ...] that a forward is given."""
    return lambda given: sum(given[name].shape[1] for name in names if given.get(name) is not None)


@dataclass(frozen=True)
class Joint:
    """One sequence of text and image: [before, text, behind, image], or [image, before, text, behind].

    The queries are the same, or the last ones of these.

    Attributes:
        tells: how its attention learns the block.
        texts: the encodings of the prompt that it takes.
        patch: latent pixels a side of an image token, or one number for each of the last dimensions.
        before: tokens of the model's own in front of the text.
        ahead, behind: how many further tokens a forward's arguments put in front of the text and behind it.
        multiple: text and image are each padded to a multiple of it.
        references: argument of a forward that lists further images, where the model does not count them itself.
        after: how many tokens of further images, or of sounds, a forward's arguments hold in another form.
        image_first: whether the image stands in front of the text.
    """

    tells: Telling
    texts: Texts
    patch: int | Sequence[int]
    before: int = 0
    ahead: Callable[[dict], int] = nothing
    behind: Callable[[dict], int] = nothing
    multiple: int = 1
    references: str = ""
    after: Callable[[dict], int] = nothing
    image_first: bool = False

    def begin(self, options: dict, x: Tensor, select: Tensor, given: dict) -> tuple[dict, Tensor, Placer]:
        """The transformer options of one forward, the columns of its text keys and where they stand.

        Args:
            x: latents [b, c, ..., h, w]; where others are packed with them, `given` has the shapes.
            select: [b, tokens], the columns of the encodings.
            given: the other arguments of the forward.
        """
        options, block_of = self.tells.begin(options)
        select = self.texts.keys(select, given)
        shape = given.get("latent_shapes", (x.shape,))[0]
        text, image = (self.padded(count) for count in (select.shape[1], self.tokens(shape)))
        before = self.before + self.ahead(given)
        others = before + text + self.behind(given)
        references = given.get(self.references) or ()
        counted = sum(self.tokens(found.shape) for found in references) + self.after(given)

        def place(rows: int, keys: int, options: dict) -> Place | None:
            block = block_of(options)
            if block is None or keys == image:
                return None  # what refines text and image alone, and the image's own attention in SD 3.5
            images = image + sum(options.get("reference_image_num_tokens", (counted,)))
            expect((rows, keys), (len(select), others + images))
            if self.image_first:
                return Place(block, images + before, slice(0, images))
            return Place(block, before, slice(-images, None))

        return options, select, place

    def padded(self, count: int) -> int:
        return math.ceil(count / self.multiple) * self.multiple

    def tokens(self, shape: Sequence[int]) -> int:
        """Of latents [b, c, ..., h, w]."""
        patch = (self.patch, self.patch) if isinstance(self.patch, int) else tuple(self.patch)
        sides = (1,) * (len(shape) - 2 - len(patch)) + patch
        return math.prod(-(-size // side) for size, side in zip(shape[2:], sides, strict=True))


def expect(found: tuple[int, int], expected: tuple[int, int]):
    """Raises ValueError when an attention's rows and keys are not those of the prompt and the image."""
    if found != expected:
        raise ValueError(
            f"the attention has {found[1]} keys in {found[0]} rows where {expected[1]} in {expected[0]} were expected: "
            "another node adds tokens or rows, and where the text stands is not certain; use AttentionErase without it"
        )
