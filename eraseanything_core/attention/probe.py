"""Records what the image's queries give to the tokens of a prompt, in little memory.

Per block only the columns of the concepts are kept, never the attention matrix; over a sampling only their means a
block, a step and a head.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from .columns import columns_view

VIEWS = ("all", "block", "step", "head")


@dataclass(frozen=True)
class Recording:
    """The attention of one sampling.

    Attributes:
        pieces, spans: the prompt's tokens, and the concepts' positions among them.
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
        """Whether it is the recording of the sampling that gave these latents."""
        mine, theirs = self.samples, samples.detach().float().cpu()
        return mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-2)

    def grids(self, view: str = "all") -> dict[str, Tensor]:
        """{label: [b, concepts, rows, columns]} of a view."""
        return {label: m.transpose(1, 2).unflatten(-1, self.grid) for label, m in self.maps[view].items()}

    def named_shares(self) -> dict[str, float]:
        """{token with its position: share}."""
        return {f"{i} {shown(self.pieces[i])}": share for i, share in self.shares.items()}

    def table(self) -> str:
        """Every token with its share of the image queries' attention; a star stands at the concepts' own."""
        own = {i for places in self.spans.values() for i in places}
        lines = [
            f"{'*' * (i in own):1} {i:3} {shown(self.pieces[i]):12} {share:.2%}" for i, share in self.shares.items()
        ]
        rest = 1 - sum(self.shares.values())
        return "\n".join([*lines, f"  the image itself, padding and end: {rest:.2%}"])


def shown(piece: str) -> str:
    """A piece with an underscore for the mark that opens a word, which fonts often lack."""
    return piece.replace("▁", "_")


class Mean:
    """A running mean of tensors."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, value: Tensor):
        self.total, self.count = self.total + value, self.count + 1

    def value(self) -> Tensor:
        return (self.total / self.count).float().cpu()


class Probe:
    """Collects the columns of one sampling, forward by forward.

    Args:
        pieces, spans: see `Recording`.
        heads: what is read of every block; () is all.
    """

    def __init__(self, pieces: list[str], spans: dict[str, list[int]], heads: tuple[int, ...] = ()):
        self.pieces, self.spans, self.heads = pieces, spans, heads
        self.means: dict[str, dict] = {view: defaultdict(Mean) for view in VIEWS}
        self.shares, self.grid = Mean(), None
        self.words = [i for i, piece in enumerate(pieces) if piece]
        self.forward: dict[tuple[str, int], Tensor] = {}

    def begin(self, step: int, sigma: float, grid: tuple[int, int], text: int, rows: Tensor | None):
        """A forward starts.

        Args:
            step, sigma: where in the sampling.
            grid: rows and columns of the image tokens.
            text: number of text tokens; they stand first.
            rows: the rows of the batch that carry the prompt; None is all.
        """
        if self.grid not in (None, grid):
            raise ValueError(
                "the prompt is sampled in areas of several sizes: AttentionProbe needs it on the whole image"
            )
        self.step, self.sigma, self.grid, self.text, self.rows = step, sigma, grid, text, rows

    def read(self, q: Tensor, k: Tensor, block: tuple[str, int], mask: Tensor | None = None):
        """Reads the columns of a block.

        Args:
            q, k: [b, heads, text + image tokens, d], after RMSNorm and RoPE.
            mask: of the same attention: [b, heads, queries, keys], or without the first one or two dimensions.
        """
        if self.rows is not None:
            q, k = q[self.rows], k[self.rows]
        if self.heads:
            q, k = _heads(q, self.heads), _heads(k, self.heads)
        image = self.text + self.grid[0] * self.grid[1]
        queries = slice(self.text, image)
        mask = None if mask is None else _masked(mask, (self.rows, list(self.heads) or None, queries))
        parts = [columns_view(q[:, :, queries], k, part, mask) for part in self.select(k).split(q.shape[-1], -1)]
        columns = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        count = len(self.spans)
        self.forward[block] = columns[..., :count].clone()  # not a view: that would keep all columns
        self.shares.add(columns[..., count:].mean(dim=(0, 1, 2)))

    def select(self, k: Tensor) -> Tensor:
        """[b, keys, concepts + words]: the columns of each concept together, then every word piece alone."""
        select = torch.zeros(k.shape[2], len(self.spans) + len(self.words), device=k.device)
        for column, places in enumerate(self.spans.values()):
            select[places, column] = 1.0
        select[self.words, len(self.spans) + torch.arange(len(self.words))] = 1.0
        return select.expand(len(k), -1, -1)

    def end(self):
        """The forward is over: its blocks go into the means."""
        if not self.forward:
            return
        columns = torch.stack(list(self.forward.values())).float()  # blocks b heads queries concepts
        blocks, heads = columns.mean(2), columns.mean(0)
        for block, value in zip(self.forward, blocks):
            self.means["block"][block].add(value)
        for head, value in zip(self.heads or range(heads.shape[1]), heads.unbind(1)):
            self.means["head"][head].add(value)
        whole = blocks.mean(0)
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
        names = {
            "all": lambda _: "all",
            "block": lambda key: f"{'dual' if key[0] == 'double' else 'single'} {key[1]}",
            "step": lambda key: f"step {key[0] + 1}, sigma {key[1]:.2f}",
            "head": lambda key: f"head {key}",
        }
        maps = {
            view: {names[view](key): mean.value() for key, mean in sorted(found.items())}
            for view, found in self.means.items()
        }
        shares = dict(zip(self.words, self.shares.value().tolist()))
        return Recording(self.pieces, self.spans, maps, shares, self.grid, samples.detach().float().cpu())


def _masked(mask: Tensor, chosen: tuple) -> Tensor:
    """A mask [b, heads, queries, keys] of chosen rows, heads and queries; None, and a size of 1, are all."""
    mask = mask if mask.ndim == 4 else mask.reshape(-1, 1, *mask.shape[-2:])
    for axis, places in enumerate(chosen):
        if places is not None and mask.shape[axis] > 1:
            mask = mask[(slice(None),) * axis + (places,)]
    return mask


def _heads(x: Tensor, heads: tuple[int, ...]) -> Tensor:
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
        raise ValueError(f"{text!r} is no choice of heads: write all, or numbers such as 0, 3, 5")
    return tuple(int(word) for word in words)
