"""A dial for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such dial: a seed's picture changes little up to some scale, which is its own, and flips there. So
that scale is measured for a few seeds: where the end of the model's trajectory, which is its velocity integrated over
the sampling, has left the frozen model's for the full LoRA's. The dial is the share of seeds past it.
"""

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from . import sampling
from .compose.adapter import Dial, applied
from .compose.erased import Erased
from .compose.keys import Eraser

HEADER = "eraseanything.strength"
GONE = 1 / 3  # of the way to the full LoRA's image: there pictures of TinyFlux lose a concept (fish, ring)


@dataclass(frozen=True)
class StrengthConfig:
    """How the response to the scale is measured."""

    images: int = 16  # seeds, each with a prompt of its own
    halvings: int = 5  # of the interval of scales in which a seed's picture flips
    steps: int = 10
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

    def scale_at(self, dial: float) -> float:
        """The LoRA's scale at a setting of the dial; past 1 the two are the same, below 0 the sign turns."""
        inside = float(np.interp(min(abs(dial), 1.0), self.effect, self.scale))
        return float(np.copysign(max(inside, abs(dial)) if abs(dial) > 1 else inside, dial))

    def text(self) -> str:
        """For the header of the LoRA's file."""
        return json.dumps({name: [round(v, 4) for v in values] for name, values in vars(self).items()})

    @classmethod
    def of(cls, header: dict[str, str]) -> "Curve | None":
        """The curve that a header holds, if it does."""
        if HEADER not in header:
            return None
        told = json.loads(header[HEADER])
        return cls(tuple(told["scale"]), tuple(told["effect"]))


def measure(model, eraser: Eraser, contexts: list[tuple[Tensor, Tensor]], config: StrengthConfig) -> Curve:
    """The effect of an eraser along its scale.

    Args:
        model: the seam, see `flux.FluxModel`.
        contexts: context [1, tokens, features] and pooled [1, features], one an image.

    Raises:
        ValueError: the LoRA changes nothing.
    """
    shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
    rng = torch.Generator().manual_seed(config.seed)
    sigmas, dial, flips = sampling.shifted_sigmas(config.steps, model.mu), Dial(), []

    def end(cond, noise: Tensor, scale: float) -> Tensor:
        dial.scale = scale
        return list(model.trajectory(cond, noise, sigmas))[-1][0].cpu()

    with applied(model.module, eraser, dial):
        for context in contexts:
            cond, noise = model.cond(*context, config.guidance), torch.randn(shape, generator=rng)
            flips.append(flip(partial(end, cond, noise), config.halvings))
    return curve(flips)


def flip(end, halvings: int) -> float:
    """The scale between 0 and 1 at which an image flips, by bisection and a line in the last interval.

    Args:
        end: the image [1, c, h, w] at a scale.
        halvings: how often the interval is halved, an image each.
    """
    whole, full = end(0.0), end(1.0)
    (low, under), (high, over) = (0.0, 0.0), (1.0, 1.0)
    for _ in range(halvings):
        middle = (low + high) / 2
        found = share(end(middle), whole, full)
        if found < GONE:
            low, under = middle, found
        else:
            high, over = middle, found
    return low + (high - low) * (GONE - under) / (over - under)


def share(at: Tensor, whole: Tensor, full: Tensor) -> float:
    """How far an image has gone from `whole`, which is 0, to `full`, which is 1, along the way between them."""
    way = full - whole
    if not way.any():
        raise ValueError("the LoRA changes nothing on this model: there is no strength to measure")
    return float(((at - whole) * way).sum() / way.square().sum())


def curve(flips: list[float]) -> Curve:
    """The share of seeds that have flipped, from the scale at which each did."""
    middles = [(i + 0.5) / len(flips) for i in range(len(flips))]
    return Curve((0.0, *sorted(flips), 1.0), (0.0, *middles, 1.0))
