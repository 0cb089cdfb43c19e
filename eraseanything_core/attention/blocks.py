"""Which attention blocks of a model are meant, as a user types it."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..quoting import quoted

Block = tuple[str, int]  # ComfyUI's block_type, "double" or "single", and block_index
Options = dict[str, Any]  # ComfyUI's transformer_options
BLOCK_RANGE = re.compile(r"\s*(all|dual|single)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*")
NO_LIMIT = 10**6  # more blocks than any model has
# A user reads "dual" in the paper and in diffusers; ComfyUI calls the same block "double".
KINDS = {"all": ("double", "single"), "dual": ("double",), "single": ("single",)}


class BlockRange(NamedTuple):
    """Blocks of one kind from `first` to `last`, both included."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Blocks:
    """A choice of attention blocks as a user types it: `all`, `dual`, `single 0-18`, `dual 3, single 0-4`.

    Raises:
        ValueError: the text is no choice of blocks.
    """

    text: str

    def __post_init__(self) -> None:
        _ = self.ranges  # read once here, so that a wrong text is refused before anything runs

    @cached_property
    def ranges(self) -> list[BlockRange]:
        """What the text names, in its order."""
        ranges = []
        for part in self.text.lower().split(","):
            match = BLOCK_RANGE.fullmatch(part)
            if match is None:
                raise ValueError(f"{quoted(part.strip())} is no choice of blocks: write all, dual, single, or dual 0-5")
            kind, first, last = match.groups()
            # `dual` alone is all dual blocks, `dual 3` is one, `dual 0-5` is six.
            start = int(first or 0)
            end = int(last or first or NO_LIMIT)
            ranges += [BlockRange(name, start, end) for name in KINDS[kind]]
        return ranges

    def __contains__(self, block: Block) -> bool:
        kind, index = block
        return any(kind == part.kind and part.first <= index <= part.last for part in self.ranges)

    def check(self, dual: int, single: int) -> None:
        """Raises ValueError when the choice takes no block of a model with so many dual and single blocks."""
        blocks = [("double", i) for i in range(dual)]
        blocks += [("single", i) for i in range(single)]
        if not any(block in self for block in blocks):
            raise ValueError(
                f"no block is chosen by {quoted(self.text)}: the model has {dual} dual and {single} single blocks"
            )
