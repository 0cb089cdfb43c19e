"""The sampler: shifted times and Euler steps.

x_t = (1 - t) x_0 + t n and v = n - x_0, so one Euler step from t to s is x_s = x_t + (s - t) v.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def token_mu(image_tokens: int) -> float:
    """Flux.1-dev's own shift for an image of so many tokens: linear from 0.5 at 256 to 1.15 at 4,096."""
    # Black Forest Labs' two points: 256 and 1,024 px square, in tokens of 16 px.
    share = (image_tokens - 256) / (4096 - 256)
    return 0.5 + (1.15 - 0.5) * share


def shifted_sigmas(steps: int, mu: float) -> Tensor:
    """The times of a sampler, from 1 (noise) to 0: sigma' = e^mu / (e^mu + 1/sigma - 1) of an even grid.

    Args:
        steps: of the sampler.
        mu: the shift; a larger one spends more of the steps near noise.

    Returns:
        [steps + 1], float32.
    """
    even = torch.linspace(1, 0, steps + 1)
    shifted = math.exp(mu) * even
    # Numerator and denominator times sigma: no 1/0 at the end, and exactly 1 and 0 at both ends.
    return shifted / (shifted + (1 - even))


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Walks from noise to an image.

    Args:
        velocity: v(x_t, t) for a batch; t is [b].
        noise: [b, c, h, w], x at sigmas[0].
        sigmas: the times of the walk, [steps + 1], or [steps + 1, b] where each picture has its own.

    Yields:
        (x_t, v) before each step, and (x_0, None) at the end.
    """
    x = noise
    for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, t.expand(len(x)).to(x))
        yield x, v
        # Not in place: the x that was yielded may still be in use.
        x = x + (s - t).to(x).view(-1, 1, 1, 1) * v
    yield x, None


def noisy_step(x: Tensor, v: Tensor, t: Tensor, s: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """One step of a stochastic sampler whose x_t are distributed as those of Euler's walk.

    With sigma_t = level sqrt(t / (1 - t)) it is Euler's and Maruyama's step of

        dx = [v + sigma_t^2 / (2 t) (x_t + (1 - t) v)] dt + sigma_t dw

    as in Flow-GRPO (Liu et al., 2025), whose term in brackets after v is the score times -sigma_t^2 / 2.

    Args:
        x: x_t, [b, c, h, w].
        v: the model's velocity there, same shape.
        t, s: the times before and after, scalars; s < t.
        level: of the noise; 0 is Euler's step.

    Returns:
        The mean of x_s, and its standard deviation in units of that of n.
    """
    # At t = 1 sigma_t is infinite; there the next time stands in its place.
    rest = 1 - t if t < 1 else 1 - s
    variance = level**2 * t / rest
    drift = v + variance / (2 * t) * (x + (1 - t) * v)
    return x + (s - t).to(x) * drift.to(x), (variance * (t - s)).sqrt()
