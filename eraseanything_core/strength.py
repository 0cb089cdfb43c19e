"""A dial for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such dial: pictures change little up to some scale and flip soon after it. So the effect is
measured, as how far the ends of the model's own trajectories have moved from the frozen model's towards the full
LoRA's, which is the change of velocity integrated over the sampling; and the dial is the effect.
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


@dataclass(frozen=True)
class StrengthConfig:
    """How the response to the scale is measured."""

    images: int = 8  # seeds, each with a prompt of its own
    scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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
    """The effect at each scale, both rising from 0 to 1."""

    scale: tuple[float, ...]
    effect: tuple[float, ...]

    def scale_at(self, dial: float) -> float:
        """The LoRA's scale at a setting of the dial; past 1 the two are the same, below 0 the sign turns."""
        inside = float(np.interp(min(abs(dial), 1.0), self.effect, self.scale))
        return float(np.copysign(max(inside, abs(dial)) if abs(dial) > 1 else inside, dial))

    def text(self) -> str:
        """For the header of the LoRA's file."""
        rounded = {"scale": self.scale, "effect": tuple(round(e, 4) for e in self.effect)}
        return json.dumps(rounded)

    @classmethod
    def of(cls, header: dict[str, str]) -> "Curve | None":
        """The curve that a header holds, if it does."""
        if HEADER not in header:
            return None
        told = json.loads(header[HEADER])
        return cls(tuple(told["scale"]), tuple(told["effect"]))


def measure(model, eraser: Eraser, contexts: list[tuple[Tensor, Tensor]], config: StrengthConfig) -> Curve:
    """The effect of an eraser at several scales.

    Args:
        model: the seam, see `flux.FluxModel`.
        contexts: context [1, tokens, features] and pooled [1, features], one an image.

    Raises:
        ValueError: the LoRA changes nothing.
    """
    shape = (1, model.channels, config.height // model.downscale, config.width // model.downscale)
    rng = torch.Generator().manual_seed(config.seed)
    noises = [torch.randn(shape, generator=rng) for _ in contexts]
    sigmas, dial = sampling.shifted_sigmas(config.steps, model.mu), Dial()

    def ends(scale: float) -> Tensor:
        dial.scale = scale
        conds = [model.cond(*context, config.guidance) for context in contexts]
        return torch.cat([list(model.trajectory(c, n, sigmas))[-1][0].cpu() for c, n in zip(conds, noises)])

    with applied(model.module, eraser, dial):
        whole, full = ends(0.0), ends(1.0)
        found = [share(ends(scale), whole, full) for scale in config.scales]
    return curve(list(config.scales), found)


def share(at: Tensor, whole: Tensor, full: Tensor) -> float:
    """How far images have gone from `whole` to `full`, each between 0 and 1; their mean. All [n, c, h, w]."""
    way, gone = (full - whole).flatten(1), (at - whole).flatten(1)
    length = way.square().sum(1)
    if not length.any():
        raise ValueError("the LoRA changes nothing on this model: there is no strength to measure")
    return float(((gone * way).sum(1) / length.clamp(min=1e-12)).clamp(0, 1).mean())


def curve(scales: list[float], effects: list[float]) -> Curve:
    """A curve from 0 to 1 through measured effects, made to rise: noise in them must not turn the dial back."""
    rising = np.maximum.accumulate([0.0, *effects, 1.0]).clip(max=1.0)
    return Curve((0.0, *scales, 1.0), tuple(float(e) for e in rising))
