"""A dial for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such dial: a seed's picture keeps the concept up to some scale, which is its own, and loses it
within a small step there. So that scale is found for some seeds by bisection, and the dial is the share of seeds past
theirs. Whether a picture has lost the concept is told by a judge, or else by the model itself: by what the eraser's
change of the velocity adds up to along the sampling.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import sampling
from .apply import Dial, applied
from .headers import Erased
from .keys import Eraser

HEADER = "eraseanything.strength"
LOST = 0.5  # of the way from the frozen model's latent to the full eraser's
MOVED = 0.6  # of the upper quartile of all moves; what the full eraser moves less has not lost the concept


@dataclass(frozen=True)
class StrengthConfig:
    """How the response to the scale is measured."""

    images: int = 32  # seeds
    halvings: int = 6  # of the interval of scales in which a seed's picture flips
    steps: int = 20
    batch: int = 4  # images painted at once
    width: int = 512  # px
    height: int = 512
    guidance: float = 3.5
    seed: int = 0

    @classmethod
    def like(cls, erased: Erased, images: int) -> "StrengthConfig":
        """At the size and guidance at which an eraser was trained."""
        return cls(images=images, width=erased.width, height=erased.height, guidance=erased.guidance)


@dataclass(frozen=True)
class Curve:
    """The share of seeds that have flipped at each scale, both rising from 0 to 1."""

    scale: tuple[float, ...]
    effect: tuple[float, ...]
    reader: str = "the model"  # who told which pictures have flipped
    prompts: str = ""  # digest of the user's own prompts that were painted

    def scale_at(self, dial: float) -> float:
        """The LoRA's scale at a setting of the dial; past 1 the two are the same, below 0 the sign turns."""
        inside = float(np.interp(min(abs(dial), 1.0), self.effect, self.scale))
        return float(np.copysign(max(inside, abs(dial)) if abs(dial) > 1 else inside, dial))

    def text(self) -> str:
        """For the header of the LoRA's file."""
        rounded = {name: [round(v, 4) for v in getattr(self, name)] for name in ("scale", "effect")}
        return json.dumps(rounded | {"reader": self.reader, "prompts": self.prompts})

    @classmethod
    def of(cls, header: dict[str, str]) -> "Curve | None":
        """The curve that a header holds, if it does."""
        if HEADER not in header:
            return None
        told = json.loads(header[HEADER])
        names = {name: told.get(name, getattr(cls, name)) for name in ("reader", "prompts")}
        return cls(tuple(told["scale"]), tuple(told["effect"]), **names)


class Painter:
    """Images of an eraser at any scale, a seed each.

    Args:
        prompts: context [1, tokens, features] and pooled [1, features] of each; images take them in turn.
    """

    def __init__(self, prompts: list[tuple[Tensor, Tensor]], config: StrengthConfig):
        self.prompts, self.config = prompts, config

    def paint(self, model, eraser: Eraser, scale: Tensor) -> Tensor:
        """Latents [n, c, h, w] in the model's space, on the CPU, each at its own scale [n].

        Args:
            model: the seam, see `flux.FluxModel`.
        """
        config, dial, made = self.config, Dial(), []
        shape = (model.channels, config.height // model.downscale, config.width // model.downscale)
        noise = torch.randn(len(scale), *shape, generator=torch.Generator().manual_seed(config.seed))
        sigmas = sampling.shifted_sigmas(config.steps, model.mu)
        with applied(model.module, eraser, dial):
            for first in range(0, len(scale), config.batch):
                part = slice(first, first + config.batch)
                states = [self.prompts[i % len(self.prompts)] for i in range(len(scale))[part]]
                cond = model.cond(*(torch.cat(x) for x in zip(*states, strict=True)), config.guidance)
                dial.scale = scale[part, None]  # alike for every rank
                made.append(list(model.trajectory(cond, noise[part], sigmas))[-1][0].cpu())
        return torch.cat(made)


class Moves:
    """Reads images by how far the eraser has moved them, which needs nothing but the model.

    The integral of the change of the velocity is the change of the latent. An image has lost the concept where its
    latent is nearer to the full eraser's than to the frozen model's.
    """

    name = Curve.reader

    def ends(self, start: Tensor, end: Tensor) -> Tensor:
        """Takes latents [n, ...] at scales 0 and 1; which of them lose the concept between, [n]."""
        self.start, self.line = start, (end - start).flatten(1)
        moved = self.line.norm(dim=1)
        return (moved > 0) & (moved >= MOVED * moved.quantile(0.75))

    def lost(self, found: Tensor) -> Tensor:
        """Which latents [n, ...], the same seeds in the same order, have lost it, [n]."""
        size = self.line.square().sum(1).clamp(min=torch.finfo(self.line.dtype).tiny)
        return ((found - self.start).flatten(1) * self.line).sum(1) / size > LOST


class Judged:
    """Reads images with a judge.

    Args:
        name: of the judge.
        shows: whether latents [n, ...] show the concept, [n].
    """

    def __init__(self, name: str, shows: Callable[[Tensor], Tensor]):
        self.name, self.shows = name, shows

    def ends(self, start: Tensor, end: Tensor) -> Tensor:
        """As `Moves.ends`."""
        return self.shows(start) & ~self.shows(end)

    def lost(self, found: Tensor) -> Tensor:
        """As `Moves.lost`."""
        return ~self.shows(found)


def measure(paint: Callable[[Tensor], Tensor], reader: Moves | Judged, images: int, halvings: int) -> Curve:
    """The effect of an eraser along its scale, of all that it has at scale 1.

    Args:
        paint: latents [n, ...] at scales [n], a seed each.
        reader: tells which images have lost the concept.
        images: n.
        halvings: how often the interval of scales in which an image flips is halved.

    Raises:
        ValueError: no image loses the concept.
    """
    low, high = torch.zeros(images), torch.ones(images)
    counted = reader.ends(paint(low), paint(high))
    if not counted.any():
        raise ValueError(
            f"by {reader.name}, none of {images} images shows the concept without the LoRA and loses it at scale 1: "
            "there is no effect to divide; take more images, or train the eraser longer"
        )
    for _ in range(halvings):
        middle = (low + high) / 2
        lost = reader.lost(paint(middle))
        low, high = torch.where(lost, low, middle), torch.where(lost, middle, high)
    return curve(low[counted].tolist(), high[counted].tolist(), reader.name)


def curve(low: list[float], high: list[float], reader: str = Curve.reader) -> Curve:
    """The share of seeds that have flipped, from the interval of scales in which each did.

    It is known at the ends of the intervals and a straight line between them; where the first interval begins it is
    half a seed, and past the last one everything has flipped.
    """
    inner = [scale for scale in sorted({*low, *high}) if 0 < scale < 1]
    share = [max(float(np.mean([end <= scale for end in high])), 0.5 / len(high)) for scale in inner]
    return Curve((0.0, *inner, 1.0), (0.0, *share, 1.0), reader)
