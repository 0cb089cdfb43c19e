"""ComfyUI's own road from a prompt to a prediction, for a model of any class, and its prediction as a velocity.

A prompt becomes conditions by the class's own `extra_conds`, and these go through its `apply_model`. Every prediction
is written as the velocity of x_t = (1 - t) x_0 + t n, which is what the losses and the sampler work with:

- flow models predict it themselves;
- for the others, whose x = x_0 + sigma n, t = sigma / (1 + sigma) and x_t = x / (1 + sigma). With x_0 as ComfyUI's
  `model_sampling` reads it from the prediction, v = n - x_0 = (x_t - x_0) / t. A step of Euler in t is then the step of
  Euler that ComfyUI makes in sigma.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..protocols import EncodedPrompt
from ..sampling import shifted_sigmas

Conditions = dict[str, Any]  # of a forward, by name, as ComfyUI's classes for conditions hold them


class Prompts(NamedTuple):
    """A batch of prompts, one a row, for a model of any class."""

    encodings: tuple[EncodedPrompt, ...]
    guidance: float


class Road:
    """A model's prediction on ComfyUI's own road.

    Args:
        base: ComfyUI's BaseModel of the caller; it is left as it is.
        module: a view of its diffusion model, see `frozen_view`.
        model_sampling: that of the MODEL, which another node may have set.
        device, dtype: where and in what precision it computes.

    Attributes:
        base: a copy of the BaseModel that runs the view.
        is_flow: whether the model predicts a velocity.
        mu: the sampling shift of a flow model; 0 for the others.
        last_time: the largest t of the model's schedule, 1 for flow models.
        noise_scale: the standard deviation of the noise that the model was trained with.
        frames: whether latents have an axis for frames, of which there is one.
    """

    def __init__(
        self, base: Any, module: nn.Module, model_sampling: Any, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.base = copy.copy(base)
        # A copy of the caller's table of modules: what is put in here is not seen there.
        self.base._modules = {**base._modules, "diffusion_model": module, "model_sampling": model_sampling}
        self.base.manual_cast_dtype = dtype
        self.base.current_patcher = None
        self.device = torch.device(device)
        self.sampling = model_sampling
        self.is_flow = isinstance(model_sampling, comfy.model_sampling.CONST)
        self.mu = _shift(model_sampling) if self.is_flow else 0.0
        self.last_time = 1.0 if self.is_flow else _time(float(model_sampling.sigma_max))
        self.noise_scale: float = getattr(model_sampling, "noise_scale", 1.0)
        self.frames = base.latent_format.latent_dimensions == 3
        self.conditions: dict[tuple[int, float, tuple[int, ...]], tuple[EncodedPrompt, Conditions]] = {}
        self.raw: Any = None  # what the diffusion model has returned last
        module.register_forward_hook(self._keep)

    def sigmas(self, steps: int, mu: float | None = None) -> Tensor:
        """The times [steps + 1] of a sampler, falling to 0: the model's own schedule, or another shift of a flow model.

        Raises:
            ValueError: a shift for a model that has none.
        """
        if self.is_flow:
            return shifted_sigmas(steps, self.mu if mu is None else mu)
        if mu is not None:
            raise ValueError("this MODEL has a schedule of its own and no shift: leave mu as it is")
        sigmas = comfy.samplers.calculate_sigmas(self.sampling, "normal", steps)
        return sigmas / (1 + sigmas)

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        """x_t at the first time of a walk, from standard noise [b, ...]."""
        if self.is_flow:
            return noise if self.noise_scale == 1.0 else noise * self.noise_scale
        # As ComfyUI's samplers begin: x has the spread of a picture with noise, sqrt(1 + sigma^2).
        sigma = t / (1 - t)
        return noise * ((1 + sigma**2).sqrt() / (1 + sigma)).to(noise)

    def of_rows(self, prompts: Prompts, x: Tensor) -> list[Conditions]:
        """The conditions of every row for latents like x [b, ...]."""
        return [self._of_row(encoded, prompts.guidance, x[:1]) for encoded in prompts.encodings]

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Sequence[Conditions], options: dict[str, Any]) -> Tensor:
        """v at x_t [b, ...] and t [b], for rows whose conditions are of equal shapes.

        Args:
            x_t: on the model's device.
            t: likewise.
            conditions: one a row.
            options: ComfyUI's transformer options.
        """
        given = arguments(conditions)
        sigma = t
        x = x_t
        if not self.is_flow:
            sigma = t / (1 - t)
            x = x_t / (1 - _like(t, x_t))
        options = {"cond_or_uncond": [0], "sigmas": sigma, "sample_sigmas": sigma, **options}
        self.raw = None
        self.base.apply_model(x, sigma, transformer_options=options, **given)
        raw = self.raw
        self.raw = None
        if self.is_flow:
            return raw
        x_0 = self.sampling.calculate_denoised(sigma, raw.to(x), x)
        return (x_t - x_0) / _like(t, x_t)

    def _keep(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Taken here and not from `apply_model`, which returns a picture in float32: dividing its difference to x by a
        # small t would lose what the model has said.
        self.raw = output

    def _of_row(self, encoded: EncodedPrompt, guidance: float, x: Tensor) -> Conditions:
        key = (id(encoded), guidance, tuple(x.shape))
        if key not in self.conditions or encoded.context.requires_grad:
            # The prompt is kept with its conditions, so that its id stays its own.
            self.conditions[key] = (encoded, self._processed(encoded, guidance, x))
        return self.conditions[key][1]

    def _processed(self, encoded: EncodedPrompt, guidance: float, x: Tensor) -> Conditions:
        """The conditions that the class makes of a prompt, for one row."""
        entries = {"guidance": guidance, **getattr(encoded, "more", {})}
        if encoded.pooled.numel():
            entries["pooled_output"] = encoded.pooled
        # ComfyUI's classes prepare a text before sampling only where they see inference mode. What is made there cannot
        # stand in a graph, so copies are. A context that is searched needs the graph through all of it.
        searched = encoded.context.requires_grad
        with torch.inference_mode(not searched):
            positive = comfy.sampler_helpers.convert_cond([[encoded.context, entries]])
            conds = {"positive": positive}
            zeros = torch.zeros_like(x)
            processed = comfy.samplers.process_conds(self.base, zeros, conds, self.device, zeros, None, 0)
            # No cond has a time range or an area, so any time gives them all.
            area = comfy.samplers.get_area_and_mult(processed["positive"][0], x, torch.tensor([0.5]))
        if searched:
            return dict(area.conditioning)
        return {name: cond._copy_with(tree_map(_copy, cond.cond)) for name, cond in area.conditioning.items()}


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def arguments(conditions: Sequence[Conditions]) -> dict[str, Any]:
    """The arguments of a forward that some rows have in common."""
    given: dict[str, Any] = comfy.samplers.cond_cat(list(conditions))
    return given


def equal_rows(conditions: Sequence[Conditions]) -> list[list[int]]:
    """Rows that can stand in one forward, which have conditions of equal shapes."""
    groups: list[list[int]] = []
    for row, own in enumerate(conditions):
        for group in groups:
            if _alike(conditions[group[0]], own):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def _alike(one: Conditions, other: Conditions) -> bool:
    # `size` and not only `can_concat`: ComfyUI would repeat a shorter text until it is as long as the longer one.
    return one.keys() == other.keys() and all(
        one[name].size() == other[name].size() and one[name].can_concat(other[name]) for name in one
    )


def _shift(sampling: Any) -> float:
    """mu of sigma' = e^mu / (e^mu + 1/sigma - 1), in which every flow model of ComfyUI shifts its times."""
    shift = float(sampling.shift)
    return shift if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux) else math.log(shift)


def _time(sigma: float) -> float:
    return sigma / (1 + sigma)


def _like(t: Tensor, x: Tensor) -> Tensor:
    """t [b] with as many axes as x [b, ...]."""
    return t.view(-1, *[1] * (x.ndim - 1))
