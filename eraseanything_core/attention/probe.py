"""Records what the image's queries give to the tokens of a prompt, in little memory.

Per block only the columns of the concepts are kept, never the attention matrix. Over a sampling only their means are
kept: of each block, each step and each head, and of all together.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..quoting import quoted
from .blocks import Block
from .columns import columns_view

VIEWS = ("all", "block", "step", "head")


@dataclass(frozen=True)
class Recording:
    """The attention of one sampling.

    Attributes:
        pieces: the prompt's tokens, one string each.
        spans: {concept: its positions among the tokens}.
        maps: {view: {label: [b, image tokens, concepts]}} for every view of `VIEWS`; means over all that is recorded.
        shares: {token position: its share of the image queries' attention}.
        grid: (rows, columns) of the image tokens.
        samples: the latents that the sampling ended in, [b, c, h, w].
    """

    pieces: list[str]
    spans: dict[str, list[int]]
    maps: dict[str, dict[str, Tensor]]
    shares: dict[int, float]
    grid: tuple[int, int]
    samples: Tensor

    def of(self, samples: Tensor) -> bool:
        """Whether it is the recording of the sampling that gave these latents [b, c, h, w]."""
        theirs = samples.detach().float().cpu()
        # Latents may have been stored in half precision between the sampler and the node that asks.
        return self.samples.shape == theirs.shape and torch.allclose(self.samples, theirs, atol=1e-2)

    def grids(self, view: str = "all") -> dict[str, Tensor]:
        """{label: [b, concepts, rows, columns]} of a view."""
        return {label: maps.transpose(1, 2).unflatten(-1, self.grid) for label, maps in self.maps[view].items()}

    def named_shares(self) -> dict[str, float]:
        """{token with its position: share}."""
        return {f"{i} {printable(self.pieces[i])}": share for i, share in self.shares.items()}

    def table(self) -> str:
        """Every token with its share of the image queries' attention; a star marks the concepts' own."""
        concept_positions: set[int] = set()
        for positions in self.spans.values():
            concept_positions.update(positions)
        lines = []
        for i, share in self.shares.items():
            star = "*" if i in concept_positions else " "
            lines.append(f"{star} {i:3} {printable(self.pieces[i]):12} {share:.2%}")
        # Shares are of a softmax over all keys, so what is missing to 1 went to the keys that are no words.
        rest = 1 - sum(self.shares.values())
        return "\n".join([*lines, f"  the image itself, padding and end: {rest:.2%}"])


def printable(piece: str) -> str:
    """A piece with an underscore for the mark that opens a word, which fonts often lack."""
    return piece.replace("▁", "_")


class Mean:
    """A running mean of tensors."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Takes one more tensor of the same shape."""
        self.total = value if self.total is None else self.total + value
        self.count += 1

    def value(self) -> Tensor:
        """The mean of what was added, float32 on the CPU."""
        assert self.total is not None, "nothing was added"
        return (self.total / self.count).float().cpu()


class Probe:
    """Collects the columns of one sampling, forward by forward.

    Args:
        pieces, spans: see `Recording`.
        heads: what is read of every block; () is all.

    Attributes:
        forward: {block: [b, heads, queries, concepts]} of the forward that runs.
        rows: the rows of its batch that carry the prompt; None is all.
    """

    def __init__(self, pieces: list[str], spans: dict[str, list[int]], heads: tuple[int, ...] = ()) -> None:
        self.pieces = pieces
        self.spans = spans
        self.heads = heads
        self.words = [i for i, piece in enumerate(pieces) if piece]  # without padding and special tokens
        self.means: dict[str, defaultdict[Any, Mean]] = {view: defaultdict(Mean) for view in VIEWS}
        self.shares = Mean()
        self.grid: tuple[int, int] | None = None
        self.step = 0
        self.sigma = 0.0
        self.text = 0
        self.rows: Tensor | None = None
        self.forward: dict[Block, Tensor] = {}

    def begin(self, step: int, sigma: float, grid: tuple[int, int], text: int, rows: Tensor | None) -> None:
        """A forward starts.

        Args:
            step, sigma: where in the sampling.
            grid: rows and columns of the image tokens.
            text: number of text tokens; they come first.
            rows: the rows of the batch that carry the prompt; None is all.

        Raises:
            ValueError: the image tokens are not those of the forwards before.
        """
        if self.grid not in (None, grid):
            raise ValueError(
                "the prompt is sampled in areas of several sizes: AttentionProbe needs it on the whole image"
            )
        self.step = step
        self.sigma = sigma
        self.grid = grid
        self.text = text
        self.rows = rows

    def read(self, q: Tensor, k: Tensor, block: Block, mask: Tensor | None = None) -> None:
        """Reads the columns of a block.

        Args:
            q, k: [b, heads, text + image tokens, d], after RMSNorm and RoPE.
            block: which one it is.
            mask: of the same attention: [b, heads, queries, keys], or without the first one or two dimensions.

        Raises:
            ValueError: the model has not all of the heads.
        """
        assert self.grid is not None, "a forward has to begin first"
        if self.rows is not None:
            # The batch also holds the negative prompt and, with several conditions, other prompts.
            q = q[self.rows]
            k = k[self.rows]
        if self.heads:
            q = _chosen_heads(q, self.heads)
            k = _chosen_heads(k, self.heads)
        # What comes behind the image, such as reference images, is not asked about.
        image_end = self.text + self.grid[0] * self.grid[1]
        queries = slice(self.text, image_end)
        if mask is not None:
            mask = _chosen_mask(mask, self.rows, list(self.heads) or None, queries)
        # One attention call reads as many columns as a head is wide; a long prompt takes several.
        parts = []
        for select in self.select(k).split(q.shape[-1], -1):
            parts.append(columns_view(q[:, :, queries], k, select, mask))
        self._keep(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0], block)

    def add(self, columns: Tensor, block: Block) -> None:
        """Takes columns that were read elsewhere.

        Args:
            columns: [b, heads, image tokens, concepts + words] of all rows of the batch.
            block: which one they are of.

        Raises:
            ValueError: the model has not all of the heads.
        """
        if self.rows is not None:
            columns = columns[self.rows]
        self._keep(_chosen_heads(columns, self.heads) if self.heads else columns, block)

    def _keep(self, columns: Tensor, block: Block) -> None:
        count = len(self.spans)
        self.forward[block] = columns[..., :count].clone()  # a view would keep all columns alive
        self.shares.add(columns[..., count:].mean(dim=(0, 1, 2)))

    def select(self, k: Tensor) -> Tensor:
        """[b, keys, concepts + words]: the columns of each concept together, then every word piece alone."""
        count = len(self.spans)
        # A concept's pieces share one column, which reads their sum; for the shares each piece has its own.
        select = torch.zeros(k.shape[2], count + len(self.words), device=k.device)
        for column, positions in enumerate(self.spans.values()):
            select[positions, column] = 1.0
        select[self.words, count + torch.arange(len(self.words))] = 1.0
        return select.expand(len(k), -1, -1)

    def end(self) -> None:
        """The forward is over: its blocks go into the means."""
        if not self.forward:
            return
        read = list(self.forward.values())
        if len({columns.shape[1] for columns in read}) > 1:
            # Blocks of a U-Net differ in their heads, and no head of one is that of another.
            read = [columns.mean(1, keepdim=True) for columns in read]
        columns = torch.stack(read).float()  # [blocks, b, heads, queries, concepts]
        blocks = columns.mean(2)
        for block, value in zip(self.forward, blocks, strict=True):
            self.means["block"][block].add(value)
        heads = columns.mean(0)
        for head, value in zip(self.heads or range(heads.shape[1]), heads.unbind(1), strict=True):
            self.means["head"][head].add(value)
        whole = blocks.mean(0)
        # Samplers such as Heun run the model twice in a step, at two sigmas.
        self.means["step"][self.step, self.sigma].add(whole)
        self.means["all"]["all"].add(whole)
        self.forward = {}

    def finish(self, samples: Tensor) -> Recording:
        """The recording of the sampling that ended in these latents.

        Raises:
            ValueError: nothing was recorded.
        """
        if self.grid is None or not self.shares.count:
            raise ValueError("no attention was recorded: no step lies between start and end, or no block is chosen")
        maps: dict[str, dict[str, Tensor]] = {}
        for view, means in self.means.items():
            label = LABELS[view]
            # Sorted by number: the order in which blocks first ran says nothing.
            maps[view] = {label(key): mean.value() for key, mean in sorted(means.items())}
        shares = dict(zip(self.words, self.shares.value().tolist(), strict=True))
        return Recording(self.pieces, self.spans, maps, shares, self.grid, samples.detach().float().cpu())


def _block_label(block: Block) -> str:
    kind, index = block
    return f"{'dual' if kind == 'double' else 'single'} {index}"


def _step_label(key: tuple[int, float]) -> str:
    step, sigma = key
    return f"step {step + 1}, sigma {sigma:.2f}"


LABELS: dict[str, Callable[[Any], str]] = {
    "all": str,
    "block": _block_label,
    "step": _step_label,
    "head": lambda head: f"head {head}",
}


def _chosen_mask(mask: Tensor, rows: Tensor | None, heads: list[int] | None, queries: slice) -> Tensor:
    """A mask [b, heads, queries, keys] of chosen rows, heads and queries; None is all of them."""
    mask = mask if mask.ndim == 4 else mask.reshape(-1, 1, *mask.shape[-2:])
    # A dimension of size 1 stands for every row, head or query, so there is nothing to choose from.
    if rows is not None and mask.shape[0] > 1:
        mask = mask[rows]
    if heads is not None and mask.shape[1] > 1:
        mask = mask[:, heads]
    if mask.shape[2] > 1:
        mask = mask[:, :, queries]
    return mask


def _chosen_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    # Checked here, for only a forward shows how many heads the model has.
    if max(heads) >= x.shape[1]:
        raise ValueError(f"the model has {x.shape[1]} heads, numbered from 0: there is no head {max(heads)}")
    return x[:, list(heads)]


def parse_heads(text: str) -> tuple[int, ...]:
    """Heads as a user types them: `all` or `0, 3, 5`; () is all.

    Raises:
        ValueError: the text is neither.
    """
    words = text.replace(",", " ").lower().split()
    if words == ["all"]:
        return ()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{quoted(text)} is no choice of heads: write all, or numbers such as 0, 3, 5")
    return tuple(int(word) for word in words)
