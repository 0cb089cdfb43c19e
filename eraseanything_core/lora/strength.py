"""A strength for an eraser: 0 leaves the model as it is, 1 is the LoRA as trained, 0.5 is half of its effect.

A LoRA's scale is no such strength. The picture of a seed keeps the concept up to some scale, which is its own, and
loses it within a small step there. So that scale is found for some seeds by bisection, and the strength is the share
of seeds that have lost the concept. Whether a picture has lost it is read by a judge, or else by the original model
with the gone score; see `training.gone_dial`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..protocols import EncodedPrompt, ErasableModel
from ..transfers import on_device
from .apply import LoraScale, lora_applied, moved
from .factors import Eraser
from .headers import training_size

HEADER_KEY = "eraseanything.strength"  # of a LoRA's header, where a curve may stand too
GONE_READER = "the gone score"
EARLIER_READER = "the model"  # of curves from before the gone score, which were up to 61 points off


def needs_curve(strength: float) -> bool:
    """Whether the scale at a strength is the eraser's own. At 0 and from 1 on, strength and scale are the same."""
    return 0 < abs(strength) < 1


@dataclass(frozen=True)
class StrengthConfig:
    """How the effect along the scale is measured.

    Attributes:
        images: how many seeds are sampled.
        halvings: of the interval of scales in which a seed's picture loses the concept.
        steps: of the sampler.
        batch_size: images sampled at once.
        width, height: of the images, in pixels.
        guidance: of the sampling.
        seed: of the noise.
    """

    images: int = 12
    halvings: int = 5
    steps: int = 20
    batch_size: int = 4
    width: int = 512
    height: int = 512
    guidance: float = 3.5
    seed: int = 0

    @property
    def forwards(self) -> int:
        """Forwards of the model for one image each that a measurement takes: both ends, and every halving."""
        return self.images * self.steps * (2 + self.halvings)

    @classmethod
    def for_header(cls, header: Mapping[str, str], images: int, name: str = "the LoRA") -> "StrengthConfig":
        """At the size and guidance at which an eraser was trained, as far as the header of its file says so.

        Raises:
            ValueError: see `training_size`.
        """
        return cls(images=images, **training_size(header, name))


@dataclass(frozen=True)
class StrengthCurve:
    """The share of seeds that have lost the concept at each scale, both rising from 0 to 1.

    Attributes:
        scale: of the LoRA.
        effect: the share of seeds.
        reader: who decided which pictures have lost the concept.
        prompts: a digest of the user's own prompts that were sampled; empty for the eraser's own.
    """

    scale: tuple[float, ...]
    effect: tuple[float, ...]
    reader: str = GONE_READER
    prompts: str = ""

    def scale_at(self, strength: float) -> float:
        """The LoRA's scale at a strength. Past 1 the two are the same, and below 0 the sign turns."""
        size = abs(strength)
        if size > 1:
            # The curve ends here: more of the LoRA than it was trained with is never less than at strength 1.
            scale = size
        else:
            scale = self._interpolated(size)
        return -scale if strength < 0 else scale

    def _interpolated(self, effect: float) -> float:
        """The scale at an effect in [0, 1], on straight lines between the points."""
        # Where several points have one effect, the last counts: past it more seeds lose the concept.
        i = 0
        while i + 1 < len(self.effect) and self.effect[i + 1] <= effect:
            i += 1
        if i == len(self.effect) - 1:
            return self.scale[i]
        slope = (self.scale[i + 1] - self.scale[i]) / (self.effect[i + 1] - self.effect[i])
        return self.scale[i] + slope * (effect - self.effect[i])

    def to_json(self) -> str:
        """The curve for a file; `from_json` reads it."""
        curve = {
            "scale": [round(value, 4) for value in self.scale],
            "effect": [round(value, 4) for value in self.effect],
            "reader": self.reader,
            "prompts": self.prompts,
        }
        return json.dumps(curve)

    @classmethod
    def from_json(cls, text: str, source: str = "the strength curve") -> "StrengthCurve":
        """The curve that `to_json` wrote; reader and prompts may be missing.

        Args:
            text: the JSON.
            source: the file that it stands in, for the error.

        Raises:
            ValueError: it is no curve.
        """
        try:
            curve: dict[str, Any] = json.loads(text)
            scale = tuple(float(value) for value in curve["scale"])
            effect = tuple(float(value) for value in curve["effect"])
            reader = str(curve.get("reader", EARLIER_READER))
            prompts = str(curve.get("prompts", ""))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{source} holds no strength curve: delete the curve, it is measured again") from error
        if not (_rises_to_one(scale) and _rises_to_one(effect) and len(scale) == len(effect)):
            raise ValueError(f"{source} holds a strength curve that does not rise from 0 to 1: delete the curve")
        return cls(scale, effect, reader, prompts)


def _rises_to_one(values: Sequence[float]) -> bool:
    """Whether numbers begin at 0, never fall and end at 1; NaN does neither."""
    if len(values) < 2 or values[0] != 0 or values[-1] != 1:
        return False
    return all(low <= high for low, high in pairwise(values))


class LatentReader(Protocol):
    """Tells from latents [n, c, h, w], a seed each, which have lost the concept.

    Attributes:
        name: who reads, for the user.
    """

    name: str

    def set_ends(self, start: Tensor, end: Tensor) -> Tensor:
        """Takes the latents at scales 0 and 1; returns which seeds lose the concept between them, [n]."""

    def lost(self, latents: Tensor) -> Tensor:
        """Which latents of the same seeds, in the same order, have lost the concept, [n]."""


class JudgeReader:
    """Reads latents with a judge of pictures.

    Args:
        name: of the judge.
        shows: whether latents [n, c, h, w] show the concept, [n].
    """

    def __init__(self, name: str, shows: Callable[[Tensor], Tensor]) -> None:
        self.name = name
        self.shows = shows

    def set_ends(self, start: Tensor, end: Tensor) -> Tensor:
        """See `LatentReader`."""
        return self.shows(start) & ~self.shows(end)

    def lost(self, latents: Tensor) -> Tensor:
        """See `LatentReader`."""
        return ~self.shows(latents)


class LatentSampler:
    """Samples latents with an eraser at any scale, a seed each.

    Args:
        prompts: encoded; images take them in turn.
        config: of the sampling.
        progress: called after every step with the forwards so far, an image each; see `StrengthConfig.forwards`.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        config: StrengthConfig,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.prompts = prompts
        self.config = config
        self.progress = progress
        self.forwards = 0

    def sample(self, model: ErasableModel, eraser: Eraser, scales: Tensor) -> Tensor:
        """Latents [n, c, h, w] in the model's space, on the CPU, each at its own scale.

        Args:
            model: the model without the eraser.
            eraser: the LoRA.
            scales: [n].
        """
        config = self.config
        shape = (model.channels, config.height // model.downscale, config.width // model.downscale)
        # All noise at once: an image has the same noise in every batch size and at every scale.
        noise = torch.randn(len(scales), *shape, generator=torch.Generator().manual_seed(config.seed))
        sigmas = model.sigmas(config.steps)
        latents = []
        scale = LoraScale()
        with lora_applied(model.module, moved(eraser, model.device), scale):
            for first in range(0, len(scales), config.batch_size):
                part = slice(first, first + config.batch_size)
                scale.value = on_device(scales[part, None], model.device)  # one for all ranks of an image
                cond = self._cond(model, range(len(scales))[part])
                latents.append(self._last_latent(model, cond, noise[part], sigmas).cpu())
        return torch.cat(latents)

    def _last_latent(self, model: ErasableModel, cond: Any, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Where a trajectory ends, [b, c, h, w]; every step of it is reported."""
        last = noise
        for x_t, velocity in model.trajectory(cond, noise, sigmas):
            last = x_t
            # The last point has no velocity, since no step follows.
            if velocity is not None:
                self.forwards += len(noise)
                if self.progress is not None:
                    self.progress(self.forwards)
        return last

    def _cond(self, model: ErasableModel, images: Sequence[int]) -> Any:
        """The prompts of these images, as one batch."""
        prompts = [self.prompts[image % len(self.prompts)] for image in images]
        return model.conds(prompts, self.config.guidance)


def measure_curve(
    sample: Callable[[Tensor], Tensor], reader: LatentReader, images: int, halvings: int
) -> StrengthCurve:
    """The effect of an eraser along its scale, as a share of what it has at scale 1.

    Args:
        sample: latents [n, ...] at scales [n], a seed each.
        reader: tells which latents have lost the concept.
        images: n.
        halvings: how often the interval of scales in which an image loses the concept is halved.

    Raises:
        ValueError: no image loses the concept.
    """
    low = torch.zeros(images)
    high = torch.ones(images)
    counted = reader.set_ends(sample(low), sample(high))
    if not counted.any():
        raise ValueError(
            f"by {reader.name}, none of {images} images shows the concept without the LoRA and loses it at scale 1: "
            "there is no effect to divide; take more images, or train the eraser longer"
        )
    for _ in range(halvings):
        # Every seed at a scale of its own, the middle of its interval: one batch halves all intervals.
        middle = (low + high) / 2
        lost = reader.lost(sample(middle))
        # Where the concept is lost in the middle, it is lost between `low` and there.
        low = torch.where(lost, low, middle)
        high = torch.where(lost, middle, high)
    return curve_from_intervals(low[counted].tolist(), high[counted].tolist(), reader.name)


def curve_from_intervals(low: Sequence[float], high: Sequence[float], reader: str = GONE_READER) -> StrengthCurve:
    """The share of seeds that have lost the concept, from the interval of scales in which each of them loses it.

    The share is known at the ends of the intervals, with straight lines between them. Where the first interval begins
    it is half a seed, and past the last one every seed has lost the concept.

    Args:
        low, high: the ends of each seed's interval.
        reader: who decided it.
    """
    inner = [scale for scale in sorted({*low, *high}) if 0 < scale < 1]
    effect = []
    for scale in inner:
        share = sum(end <= scale for end in high) / len(high)
        # Half a seed and not none: with none, the strength would jump over the scales up to here.
        effect.append(max(share, 0.5 / len(high)))
    return StrengthCurve((0.0, *inner, 1.0), (0.0, *effect, 1.0), reader)
