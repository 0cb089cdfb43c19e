"""The sampler's side of training: shifted sigmas, Euler steps, and points x_t that lie on a trajectory.

x_t = (1 - t) x_0 + t n and v = n - x_0, so one Euler step from t to s is x_s = x_t + (s - t) v.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

Points = tuple[Tensor, Tensor]  # trajectory [b] and step [b] in a pool


def token_mu(image_tokens: int) -> float:
    """Flux.1-dev's own shift for an image of so many tokens: linear from 0.5 at 256 to 1.15 at 4,096."""
    return 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)


def shifted_sigmas(steps: int, mu: float) -> Tensor:
    """The times of a sampler, from 1 (noise) to 0: sigma' = e^mu / (e^mu + 1/sigma - 1) of an even grid.

    Returns:
        steps + 1 values, float32.
    """
    even = torch.linspace(1, 0, steps + 1)
    shifted = math.exp(mu) * even
    return shifted / (shifted + (1 - even))  # the same without 1/0, and exactly 1 and 0 at the ends


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Iterator[tuple]:
    """Walks from noise to an image.

    Args:
        velocity: v(x_t, t) for a batch; t has one entry an image.
        noise: [b, c, h, w]; what x is at sigmas[0].
        sigmas: the s + 1 times of the walk.

    Yields:
        (x_t, v) before each of the s steps, and (x_0, None) at the end.
    """
    x = noise
    for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, t.expand(len(x)).to(x))
        yield x, v
        x = x + (s - t).to(x) * v
    yield x, None


@dataclass(frozen=True)
class Pool:
    """Trajectories, what each was made from, and what the teacher said along them.

    Attributes:
        sources: one object a trajectory (a prompt, a sentence).
        x: [p, s + 1, c, h, w]: x_t at every time, x_0 last.
        v: [p, s, c, h, w]: the teacher's velocity there.
        sigmas: [s + 1].
        neutral: [p, s, c, h, w]: the teacher's velocity for the neutral prompt, where it was asked for.
        known: [p, s, 1 + k, queries]: the teacher's attention features of the other words, likewise.
    """

    sources: list
    x: Tensor
    v: Tensor
    sigmas: Tensor
    neutral: Tensor | None = None
    known: Tensor | None = None

    def draw(self, count: int, window: tuple[float, float], generator: torch.Generator) -> Points:
        """Chooses `count` points, trajectory and step, with sigma in the window; see `at`."""
        inside = ((self.sigmas[:-1] >= window[0]) & (self.sigmas[:-1] <= window[1])).nonzero()[:, 0]
        row = torch.randint(len(self.sources), (count,), generator=generator)
        step = inside[torch.randint(len(inside), (count,), generator=generator)]
        return row, step

    def at(self, row: Tensor, step: Tensor, device) -> tuple[Tensor, Tensor, Tensor]:
        """x_t [b, c, h, w], t [b] and the teacher's v [b, c, h, w] of chosen points."""
        x, v = self.x[row, step], self.v[row, step]
        return x.to(device), self.sigmas[step].to(device), v.to(device)


def collect(trajectory: Iterator[tuple], x: Tensor, v: Tensor):
    """Runs a batch of trajectories to their end; every x goes into x [b, s + 1, ...] and every v into v [b, s, ...]."""
    for i, (x_t, v_t) in enumerate(trajectory):
        x[:, i] = x_t
        if v_t is not None:
            v[:, i] = v_t


def allocate(shape: tuple[int, ...], gib: float, beside: int = 0) -> Tensor:
    """Zeros to fill; what is beyond so many GiB lies in a file that goes when the tensor does.

    Args:
        shape: of float32.
        gib: the bound.
        beside: bytes that count towards it already.

    Raises:
        OSError: the disk has no room for the file.
    """
    size = 4 * math.prod(shape)
    if size + beside <= gib * 2**30:
        return torch.zeros(shape)
    try:
        file = tempfile.TemporaryFile()
        reserve(file, size)
    except OSError as error:
        told = f"no room for {size / 2**30:.1f} GiB of pools in {tempfile.gettempdir()} ({error.strerror})"
        raise OSError(error.errno, f"{told}: make room there, or lower pool or the resolution") from error
    return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


def reserve(file: IO[bytes], size: int):
    """Takes the disk's space now: where a sparse file finds none, a write to its memory map ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.writelines(bytes(min(2**20, size - start)) for start in range(0, size, 2**20))
        file.flush()
