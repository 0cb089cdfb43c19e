"""Cross-attention, whose keys are the text and little else."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...attention.columns import Place, Placer
from .joint import expect, nothing
from .reporting import Telling
from .texts import Texts


@dataclass(frozen=True)
class Cross:
    """Keys [before, text, behind]; all queries are the image's.

    Attributes:
        tells, texts, before, ahead, behind: see `Joint`.
        beside: arguments of a forward [b, ..., tokens, features] with an attention of their own in the same module.
    """

    tells: Telling
    texts: Texts
    before: int = 0
    ahead: Callable[[dict], int] = nothing
    behind: Callable[[dict], int] = nothing
    beside: tuple[str, ...] = ()

    def begin(self, options: dict, x: Tensor, select: Tensor, given: dict) -> tuple[dict, Tensor, Placer]:
        """See `Joint.begin`."""
        options, block_of = self.tells.begin(options)
        select = self.texts.keys(select, given)
        before = self.before + self.ahead(given)
        count = before + select.shape[1] + self.behind(given)
        beside = sum(given[name].shape[-2] for name in self.beside if given.get(name) is not None)
        if beside == count:
            raise ValueError(f"text and reference image both have {count} tokens: take a prompt of another length")

        def place(rows: int, keys: int, options: dict) -> Place | None:
            block = block_of(options)
            if block is None or keys == beside:
                return None
            expect((rows, keys), (len(select), count))
            return Place(block, before, slice(0, None))

        return options, select, place
