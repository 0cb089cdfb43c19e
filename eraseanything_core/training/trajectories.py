"""Trajectories kept in memory or on disk, and the points x_t that lie on them."""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .. import sampling
from ..concepts import prompts
from ..protocols import GIB, ErasableModel
from ..transfers import on_device
from .config import EraseConfig

Points = tuple[Tensor, Tensor]  # trajectory [b] and step [b], both indices
PARTS = 20  # of a step, in which times are shifted
SHIFT = 15  # of those parts at most: the steps stay in order
ZEROS = 2**20  # bytes written at a time where the disk's space cannot be reserved


@dataclass(frozen=True)
class Trajectories:
    """Walks from noise to an image, what each was made from, and what the teacher answered along them.

    Attributes:
        sources: one prompt or sentence a trajectory.
        x: [p, s + 1, c, h, w], x_t at every time, x_0 last.
        v: [p, s, c, h, w], the teacher's velocity there.
        sigmas: [s + 1], the times; [p, s + 1] where each trajectory has its own.
        neutral: [p, s, c, h, w], the teacher's velocity for the neutral prompt, at the points that were computed.
        word_features: [p, s, 1 + K, queries], the teacher's attention features of the synonym and the K irrelevant
            words, likewise.
        x_rows: [p], the row of x on which each trajectory's points lie; None: each has a row of its own.
    """

    sources: list[Any]
    x: Tensor
    v: Tensor
    sigmas: Tensor
    neutral: Tensor | None = None
    word_features: Tensor | None = None
    x_rows: Tensor | None = None

    def draw(self, count: int, lowest: float, generator: torch.Generator, chances: Tensor | None = None) -> Points:
        """Draws `count` points whose time is not below `lowest`.

        Args:
            count: how many.
            lowest: time.
            generator: of all chance.
            chances: [p, s], of each point; None is even.
        """
        times = self.sigmas[..., :-1]  # the last one is x_0, where nothing is left to predict
        if self.x_rows is not None and times.ndim == 2:
            times = times[self.x_rows]
        allowed = times >= lowest
        if chances is None and times.ndim == 2:
            chances = torch.zeros(times.shape)
        if chances is not None:
            # The +: where all chances inside are 0, the points there are alike.
            inside = (chances + torch.finfo(chances.dtype).tiny) * allowed
            point = torch.multinomial(inside.flatten(), count, replacement=True, generator=generator)
            return point // times.shape[-1], point % times.shape[-1]
        inside = allowed.nonzero()[:, 0]
        # Rows before steps: the order of draws is part of a run's result.
        row = torch.randint(len(self.sources), (count,), generator=generator)
        step = inside[torch.randint(len(inside), (count,), generator=generator)]
        return row, step

    def at(self, row: Tensor, step: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
        """x_t [b, c, h, w], t [b] and the teacher's v [b, c, h, w] at points, on a device."""
        # Indexing with tensors copies, out of a file's map as well: no caller can change the cache.
        x_row = row if self.x_rows is None else self.x_rows[row]
        x_t = self.x[x_row, step]
        v = self.v[row, step]
        sigma = self.sigmas[step] if self.sigmas.ndim == 1 else self.sigmas[x_row, step]
        return on_device(x_t, device), on_device(sigma, device), on_device(v, device)

    def arrays(self) -> dict[str, Tensor]:
        """The arrays that exist, by attribute."""
        arrays = {"v": self.v}
        if self.x_rows is None:
            arrays["x"] = self.x
        if self.neutral is not None:
            arrays["neutral"] = self.neutral
        if self.word_features is not None:
            arrays["word_features"] = self.word_features
        return arrays


def noisy_walk(
    model: ErasableModel, cond: Any, noise: Tensor, sigmas: Tensor, draws: Tensor, level: float
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The frozen model's walk by `sampling.noisy_step`, in the place of `ErasableModel.trajectory`.

    Args:
        model: its adapters stay off.
        cond: as long as the batch.
        noise: [b, c, h, w], from which x at sigmas[0] is made.
        sigmas: [s + 1].
        draws: [b, s, c, h, w], standard noise of the steps.
        level: of the noise, see `sampling.noisy_step`.

    Yields:
        (x_t, v) before each step, and (x_0, None) at the end.
    """
    # The model knows how its walks begin.
    x, v = next(model.trajectory(cond, noise, sigmas))
    times = zip(sigmas[:-1], sigmas[1:], strict=True)
    for i, (t, s) in enumerate(times):
        if i:
            v = model.velocity(x, t.expand(len(x)).to(x), cond, adapters=False)
        yield x, v
        assert v is not None, "only the end of a walk has no velocity"
        mean, deviation = sampling.noisy_step(x, v, t, s, level)
        x = mean + model.noise_scale * deviation.to(x) * draws[:, i].to(x)
    yield x, None


def lines(pictures: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t n at every time, [b, s + 1, c, h, w].

    Args:
        pictures: x_0, [b, c, h, w].
        noise: n, likewise.
        sigmas: [s + 1], or [b, s + 1].
    """
    t = torch.atleast_2d(sigmas)[:, :, None, None, None].to(pictures)
    return (1 - t) * pictures[:, None] + t * noise[:, None]


def collect(walk: Iterator[tuple[Tensor, Tensor | None]], x: Tensor, v: Tensor) -> None:
    """Runs a batch of trajectories to their end.

    Args:
        walk: yields (x_t, v), and (x_0, None) at the end.
        x: [b, s + 1, ...], receives every x_t.
        v: [b, s, ...], receives every v.
    """
    for i, (x_t, v_t) in enumerate(walk):
        x[:, i] = x_t
        if v_t is not None:
            v[:, i] = v_t


def allocate(shape: tuple[int, ...], gib: float, allocated: int = 0) -> Tensor:
    """A float32 array of zeros, in memory as long as a bound allows, otherwise in a temporary file.

    Args:
        shape: of the array.
        gib: the bound, which several arrays share.
        allocated: bytes of the other arrays.

    Returns:
        The array. Its file, if it has one, disappears together with it.

    Raises:
        OSError: the disk has no room for the file.
    """
    size = 4 * math.prod(shape)
    if size + allocated <= gib * GIB:
        return torch.zeros(shape)
    try:
        file = tempfile.TemporaryFile()
        reserve(file, size)
    except OSError as error:
        folder = tempfile.gettempdir()
        problem = f"no room for {size / GIB:.1f} GiB of cached trajectories in {folder} ({error.strerror})"
        advice = "make room there, or lower cached_trajectories or the resolution"
        raise OSError(error.errno, f"{problem}: {advice}") from error
    # The map outlives the file object, and the system frees the file together with it.
    return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


def reserve(file: IO[bytes], size: int) -> None:
    """Takes the disk's space now.

    A sparse file would take it with each write. A write to a memory map on a full disk ends the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, ZEROS):
        file.write(bytes(min(ZEROS, size - start)))
    file.flush()


def at_points_of(concept: Trajectories, retained: Sequence[prompts.Prompt], v: Tensor) -> Trajectories:
    """Retained prompts at the concept's points, each on one of its trajectories; v is the teacher's for them."""
    rows = torch.arange(len(retained)) % len(concept.sources)
    return Trajectories(list(retained), concept.x, v, concept.sigmas, x_rows=rows)


def latent_shape(model: ErasableModel, config: EraseConfig) -> tuple[int, int, int]:
    """Channels, height and width of a latent at the run's resolution."""
    return model.channels, config.height // model.downscale, config.width // model.downscale


def own_times(model: ErasableModel, config: EraseConfig, rows: int, rng: torch.Generator) -> Tensor:
    """Times of each trajectory's own, [rows, sampling_steps + 1].

    A sampler of so few steps knows as many noise levels. What is trained at those alone stays in pictures of a finer
    sampler: it walks at others. So all times between the first and the last are shifted together, by up to
    `SHIFT / PARTS` of a step to either side, each trajectory's by another share.

    Args:
        model: its schedule is asked for.
        config: the run's settings.
        rows: trajectories of one kind.
        rng: deals the shifts to them.
    """
    shifts = torch.linspace(-SHIFT, SHIFT, rows).round().long()
    return shifted_times(model, config, shifts[torch.randperm(rows, generator=rng)])


def highest_times(model: ErasableModel, config: EraseConfig) -> Tensor:
    """The highest time that a trajectory may have at each step, [sampling_steps + 1]."""
    if not config.own_times:
        return run_sigmas(model, config)
    return shifted_times(model, config, torch.tensor([-SHIFT]))[0]


def shifted_times(model: ErasableModel, config: EraseConfig, shifts: Tensor) -> Tensor:
    """The run's times shifted by so many parts of a step, [rows, sampling_steps + 1]; both ends stay.

    Args:
        model: its schedule is asked for.
        config: the run's settings.
        shifts: [rows], whole numbers; above 0 is later, which is less noise.
    """
    fine = model.sigmas(PARTS * config.sampling_steps, config.mu)
    inner = PARTS * torch.arange(1, config.sampling_steps) + shifts[:, None]
    first = fine[:1].expand(len(shifts), 1)
    last = fine[-1:].expand(len(shifts), 1)
    return torch.cat((first, fine[inner], last), 1)


def run_sigmas(model: ErasableModel, config: EraseConfig) -> Tensor:
    """The times of the run's sampler, [sampling_steps + 1]."""
    # The shift decides how many steps lie near noise, where the content of a picture is settled.
    return model.sigmas(config.sampling_steps, config.mu)
