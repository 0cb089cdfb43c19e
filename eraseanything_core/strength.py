"""A dial for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such dial: a seed's picture keeps the concept up to some scale, which is its own, and loses it
there. So that scale is measured for some seeds. What a picture shows is asked of the frozen model's velocity, as a
diffusion classifier does (Li et al. 2023, arXiv:2303.16203): the concept, another word in its place, or nothing there.
The dial is the share of seeds past their scale.
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
TIMES = (0.95, 0.95, 0.9, 0.9)  # to which an image is noised, each time anew, before the model is asked what it shows
RIVALS = 2  # words that an image is compared with: those that the full LoRA's image is nearest to
FROM_RIVAL, FROM_BARE = 0.5, 0.4  # where on the way from another prompt's velocity to the concept's it is lost


@dataclass(frozen=True)
class StrengthConfig:
    """How the response to the scale is measured."""

    images: int = 32  # seeds
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
        prompts: context [1, tokens, features] and pooled [1, features] of a prompt with the concept, of the same
            without it, and of the same with each of some other words in its place.
        rng: of the noise.
    """

    def __init__(self, model, dial: Dial, prompts: list[tuple], config: StrengthConfig, rng: torch.Generator):
        shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
        self.noise, *looks = (torch.randn(shape, generator=rng).to(model.device) for _ in (None, *TIMES))
        self.looks, self.times = torch.cat(looks), torch.tensor(TIMES, device=model.device)
        self.model, self.dial = model, dial
        self.sigmas = sampling.shifted_sigmas(config.steps, model.mu)
        self.painted = model.cond(*prompts[0], config.guidance)
        conds = [model.cond(*(x.expand(len(TIMES), *x.shape[1:]) for x in prompt), 1.0) for prompt in prompts]
        self.named, self.bare, *rivals = conds
        found, velocities = self.read(1.0, rivals)
        errors = [float((v - found).square().sum()) for v in velocities]
        self.rivals = [rivals[i] for i in np.argsort(errors)[:RIVALS]]

    def read(self, scale: float, conds: list) -> tuple[Tensor, list[Tensor]]:
        """The velocity from the image at a scale to the noise, and what the frozen model expects with some prompts."""
        self.dial.scale = scale
        image = list(self.model.trajectory(self.painted, self.noise, self.sigmas))[-1][0]
        self.dial.scale = 0.0
        t = self.times[:, None, None, None]
        x = (1 - t) * image + t * self.looks
        return self.looks - image, [self.model.velocity(x, self.times, c, adapters=False) for c in conds]

    def margin(self, scale: float) -> float:
        """How much the image at a scale is the concept's rather than any other prompt's; lost below 0."""
        found, (named, bare, *rivals) = self.read(scale, [self.named, self.bare, *self.rivals])
        return min([way(found, bare, named) - FROM_BARE, *(way(found, r, named) - FROM_RIVAL for r in rivals)])


def way(found: Tensor, start: Tensor, end: Tensor) -> float:
    """How far on the way from `start` to `end` a velocity lies; nearer to `end` past 0.5."""
    line = end - start
    return float(((found - start) * line).sum() / line.square().sum().clamp(min=torch.finfo(line.dtype).tiny))


def measure(model, eraser: Eraser, prompts: list[list[tuple]], config: StrengthConfig) -> Curve:
    """The effect of an eraser along its scale, of all that it has at scale 1.

    Args:
        model: the seam, see `flux.FluxModel`.
        prompts: what `Seed` takes, for every image.

    Raises:
        ValueError: no image shows the concept at scale 0 and loses it at 1.
    """
    rng, dial = torch.Generator().manual_seed(config.seed), Dial()
    with applied(model.module, eraser, dial):
        flips = [flip(Seed(model, dial, one, config, rng).margin, config.halvings) for one in prompts]
    found = [scale for scale in flips if scale is not None]
    if not found:
        raise ValueError(
            f"none of {len(flips)} images shows the concept without the LoRA and loses it at scale 1: there is no "
            "effect to divide; take more images, or train the eraser longer"
        )
    return curve(found)


def flip(margin, halvings: int) -> float | None:
    """The scale between 0 and 1 at which an image loses the concept, by bisection and a line in the last interval.

    Args:
        margin: of the image at a scale, see `Seed.margin`.
        halvings: how often the interval is halved, an image each.

    Returns:
        None if the concept is not there at 0, or still there at 1.
    """
    low, high = 0.0, 1.0
    under, over = margin(low), margin(high)
    if under <= 0 or over > 0:
        return None
    for _ in range(halvings):
        middle = (low + high) / 2
        found = margin(middle)
        if found > 0:
            low, under = middle, found
        else:
            high, over = middle, found
    return low + (high - low) * under / (under - over)


def curve(flips: list[float]) -> Curve:
    """The share of seeds that have flipped, from the scale at which each did."""
    middles = [(i + 0.5) / len(flips) for i in range(len(flips))]
    return Curve((0.0, *sorted(flips), 1.0), (0.0, *middles, 1.0))
