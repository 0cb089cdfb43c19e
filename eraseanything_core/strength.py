"""A dial for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such dial: a seed's picture keeps the concept up to some scale, which is its own, and loses it
there. So that scale is measured for a few seeds. Whether a picture shows the concept is asked of the frozen model's
velocity, as a diffusion classifier does (Li et al. 2023, arXiv:2303.16203). The dial is the share of seeds past theirs.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import sampling
from .compose.adapter import Dial, applied
from .compose.erased import Erased
from .compose.keys import Eraser

HEADER = "eraseanything.strength"
TIMES = (0.9, 0.75, 0.5)  # to which an image is noised before the model is asked what it shows
LOST = 0.5  # of the way from the frozen model's margin to the full LoRA's


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


class Seed:
    """One image: painted at any scale of the eraser, and read by the frozen model.

    Args:
        model: the seam, see `flux.FluxModel`, with the eraser applied at `dial`.
        named: context [1, tokens, features] and pooled [1, features] of a prompt with the concept.
        bare: the same without it.
        rng: of the noise.
    """

    def __init__(self, model, dial: Dial, named, bare, config: StrengthConfig, rng: torch.Generator):
        shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
        noises = [torch.randn(shape, generator=rng).to(model.device) for _ in (None, *TIMES)]
        self.noise, self.looks = noises[0], list(zip(TIMES, noises[1:], strict=True))
        self.model, self.dial = model, dial
        self.sigmas = sampling.shifted_sigmas(config.steps, model.mu)
        self.painted = model.cond(*named, config.guidance)
        self.named, self.bare = model.cond(*named, 1.0), model.cond(*bare, 1.0)

    def margin(self, scale: float) -> float:
        """How much better the frozen model explains the image at a scale with the concept in the prompt."""
        self.dial.scale = scale
        image = list(self.model.trajectory(self.painted, self.noise, self.sigmas))[-1][0]
        self.dial.scale = 0.0
        return self.error(image, self.bare) - self.error(image, self.named)

    def error(self, image: Tensor, cond) -> float:
        """Mean squared error of the velocity from the image to the noise."""
        found = 0.0
        for t, noise in self.looks:
            v = self.model.velocity((1 - t) * image + t * noise, torch.tensor([t]), cond, adapters=False)
            found += float((v - (noise - image)).square().mean())
        return found


def measure(model, eraser: Eraser, prompts: list[tuple[tuple, tuple]], config: StrengthConfig) -> Curve:
    """The effect of an eraser along its scale.

    Args:
        model: the seam, see `flux.FluxModel`.
        prompts: context [1, tokens, features] and pooled [1, features] of a prompt with the concept, and of the same
            without it; a pair an image.

    Raises:
        ValueError: the LoRA changes nothing.
    """
    rng, dial = torch.Generator().manual_seed(config.seed), Dial()
    with applied(model.module, eraser, dial):
        return curve([flip(Seed(model, dial, *pair, config, rng).margin, config.halvings) for pair in prompts])


def flip(margin, halvings: int) -> float:
    """The scale between 0 and 1 at which an image loses the concept, by bisection and a line in the last interval.

    Args:
        margin: of the image at a scale.
        halvings: how often the interval is halved, an image each.

    Raises:
        ValueError: the margin is the same at both ends.
    """
    whole, full = margin(0.0), margin(1.0)
    if whole == full:
        raise ValueError("the LoRA changes nothing on this model: there is no strength to measure")
    (low, under), (high, over) = (0.0, 0.0), (1.0, 1.0)
    for _ in range(halvings):
        middle = (low + high) / 2
        found = (whole - margin(middle)) / (whole - full)
        if found < LOST:
            low, under = middle, found
        else:
            high, over = middle, found
    return low + (high - low) * (LOST - under) / (over - under)


def curve(flips: list[float]) -> Curve:
    """The share of seeds that have flipped, from the scale at which each did."""
    middles = [(i + 0.5) / len(flips) for i in range(len(flips))]
    return Curve((0.0, *sorted(flips), 1.0), (0.0, *middles, 1.0))
