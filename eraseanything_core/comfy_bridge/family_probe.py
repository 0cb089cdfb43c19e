"""Records where a concept is attended to in a model of any family; see `attention.probe`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.blocks import Blocks, Options
from ..attention.hooks import OVERRIDE, Forward, ProbeHook
from ..attention.located_prompt import LocatedPrompt
from .families.located import heads_apart, read_columns
from .families.table import Layout

PATCHES = (1, 2, 4, 8, 16, 32, 64)  # latent cells a side of what one query of a cross-attention stands for


class FamilyProbeHook(ProbeHook):
    """Records the concepts' columns; the attention itself is computed as without it.

    Args:
        prompt, sigmas, blocks, heads: see `ProbeHook`.
        layout: where the text stands in the MODEL's attention.
        cell: pixels a latent cell.
    """

    def __init__(
        self,
        prompt: LocatedPrompt,
        sigmas: tuple[float, float],
        blocks: Blocks,
        heads: tuple[int, ...],
        layout: Layout,
        cell: int,
    ) -> None:
        super().__init__(prompt, sigmas, blocks, heads)
        self.layout = layout
        self.cell = cell

    def patch(self, patcher: Any) -> None:
        self.layout.reporter.patch(patcher)

    def texts(self, context: Tensor | None, arguments: dict[str, Any]) -> tuple[Any, ...]:
        return self.layout.texts.of_forward(context, arguments)

    def act(self, forward: Forward) -> Options:
        columns = [self.columns_of(positions, forward) for positions in self.read_positions()]
        options, first, locate = self.layout.begin(forward.options, forward.x, columns[0], forward.arguments)
        others = [self.layout.texts.keys(column, forward.arguments) for column in columns[1:]]
        keys = torch.stack([first, *others], dim=-1)
        self.probe.begin(
            step=int((options["sample_sigmas"] > forward.sigma + 1e-6).sum()),
            sigma=forward.sigma,
            grid=finest_grid(self.layout, forward.x),
            text=0,
            rows=self.recorded_rows(forward),
        )
        before = options.get(OVERRIDE)

        def attend(
            attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **more: Any
        ) -> Tensor:
            apart = more.get("skip_reshape", False)  # whether the heads have an axis of their own
            position = locate(len(k), k.shape[2 if apart else 1], more.get("transformer_options", {}))
            if position is not None and position.block in self.blocks:
                queries, others = (q, k) if apart else (heads_apart(q, heads), heads_apart(k, heads))
                mask = args[0] if args else more.get("mask")
                read = partial(read_columns, queries, others, position=position, mask=mask, scale=more.get("scale"))
                # One attention call reads as many columns as a head is wide.
                parts = [read(keys=some) for some in keys.split(queries.shape[-1], -1)]
                self.probe.add(self.on_grid(torch.cat(parts, dim=-1), forward.x), position.block)
            run = partial(before, attention) if before else attention
            return run(q, k, v, heads, *args, **more)

        return {**options, OVERRIDE: attend}

    def read_positions(self) -> list[list[int]]:
        """The tokens of each column: those of every concept, then every word piece alone."""
        return [*self.prompt.spans.values(), *([word] for word in self.probe.words)]

    def columns_of(self, positions: list[int], forward: Forward) -> Tensor:
        """[b, tokens of all texts], one at these tokens of the prompt."""
        return dataclasses.replace(self.prompt, spans={"": positions}).columns(*forward.texts)

    def on_grid(self, columns: Tensor, x: Tensor) -> Tensor:
        """Columns [b, heads, queries of a block, columns] at the finest block's queries, which a U-Net has fewer of."""
        rows, width = query_grid(self.layout, x, columns.shape[2])
        own = columns[:, :, : rows * width]  # some families pad the image
        assert self.probe.grid is not None
        if (rows, width) == self.probe.grid:
            return own
        maps = own.transpose(2, 3).unflatten(-1, (rows, width)).flatten(0, 1).float()
        # A coarse query stands for several fine ones, each of which gets its weight.
        finer = F.interpolate(maps, self.probe.grid, mode="nearest")
        return finer.unflatten(0, columns.shape[:2]).flatten(-2).transpose(2, 3)

    def end(self) -> None:
        super().end()
        self.layout.reporter.end()


def finest_grid(layout: Layout, x: Tensor) -> tuple[int, int]:
    """Rows and columns of the image tokens of the largest block, for latents x [b, c, ..., h, w]."""
    return query_grid(layout, x, layout.image_tokens(x.shape))


def query_grid(layout: Layout, x: Tensor, queries: int) -> tuple[int, int]:
    """Rows and columns of a block's image queries.

    Raises:
        ValueError: the latents are no single picture, or the queries are no grid of it.
    """
    if x.ndim == 5 and x.shape[2] != 1:
        raise ValueError(f"the sampling is a video of {x.shape[2]} frames: AttentionProbe reads one frame")
    height, width = x.shape[-2:]
    patch = getattr(layout, "patch", 1)
    own = [patch if isinstance(patch, int) else patch[-1]]
    padded = getattr(layout, "multiple", 1)
    for side in (*own, *PATCHES):
        rows, columns = -(-height // side), -(-width // side)
        if -(-rows * columns // padded) * padded == queries:
            return rows, columns
    raise ValueError(f"{queries} image queries are no grid of {height} x {width} latent cells: this MODEL is not read")
