"""Which points each pair of an epoch uses.

All chance comes from the seed and the pair's number. So the draws of an epoch are known when its trajectories are
computed, and the teacher can answer for all of them in advance.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import EraseConfig
from .importance import retain_chances
from .plan import generator
from .trajectories import Points, Trajectories

Point = tuple[int, int]  # trajectory and step


@dataclass(frozen=True)
class Draw:
    """The points of one pair, by the losses that use them; None where the loss is off.

    Attributes:
        erase: of the ESD and attention losses, on the concept's trajectories.
        retain: of the retain loss, on the retained prompts' trajectories.
        rsc: of the reverse self-contrastive loss, on the concept's trajectories.
    """

    erase: Points
    retain: Points | None
    rsc: Points | None


def draw_epoch(
    config: EraseConfig,
    concept: Trajectories,
    retain: Trajectories | None,
    number: int,
    chances: Tensor | None = None,
) -> dict[int, list[Draw]]:
    """The draws of every pair of an epoch, `gradient_accumulation_steps` for each.

    Args:
        config: the run's settings.
        concept: trajectories of the concept; only their number and times matter here.
        retain: trajectories of retained prompts, or None.
        number: of the epoch.
        chances: [p, s], of each point of the concept's trajectories; None is even.
    """
    shared_points = None
    if config.rsc_weight and config.rsc_samples:
        # The complement of the seed keeps these draws apart from those of the pairs.
        rng = generator(~config.seed, number)
        shared_points = concept.draw(config.rsc_samples, config.rsc_time, rng)
    first = number * config.refresh_every
    end = min(config.steps, first + config.refresh_every)
    draws: dict[int, list[Draw]] = {}
    for step in range(first, end):
        rng = generator(config.seed, step)
        draws[step] = []
        for _ in range(config.gradient_accumulation_steps):
            draws[step].append(_draw_pair(config, concept, retain, shared_points, rng, chances))
    return draws


def _draw_pair(
    config: EraseConfig,
    concept: Trajectories,
    retain: Trajectories | None,
    shared_points: Points | None,
    rng: torch.Generator,
    chances: Tensor | None,
) -> Draw:
    """One draw. With `shared_points` the rsc loss takes its points from among them."""
    of_retained = None
    if retain and chances is not None:
        of_retained = retain_chances(chances, len(retain.sources))
    # The order of these draws is part of a run's result.
    erase_points = concept.draw(config.batch_size, config.erase_time, rng, chances)
    retain_points = retain.draw(config.retain_batch_size, 0.0, rng, of_retained) if retain else None
    rsc_points = None
    if config.rsc_weight and shared_points:
        rows, steps = shared_points
        chosen = torch.randint(len(rows), (config.batch_size,), generator=rng)
        rsc_points = (rows[chosen], steps[chosen])
    elif config.rsc_weight:
        rsc_points = concept.draw(config.batch_size, config.rsc_time, rng)
    return Draw(erase_points, retain_points, rsc_points)


def unique_points(batches: Iterable[Points | None]) -> list[Point]:
    """Every (trajectory, step) of some batches once, in order."""
    points: set[Point] = set()
    for batch in batches:
        if batch is not None:
            rows, steps = batch
            points.update((int(row), int(step)) for row, step in zip(rows, steps, strict=True))
    return sorted(points)


def missing_targets(draws: dict[int, list[Draw]], kind: str, covered: int) -> list[Point]:
    """The points at which the teacher has yet to answer.

    Args:
        draws: of the epoch, by pair.
        kind: a field of `Draw`.
        covered: pairs before this one have their answers already.
    """
    before: list[Points | None] = []
    after: list[Points | None] = []
    for step, pair_draws in draws.items():
        side = before if step < covered else after
        side.extend(getattr(draw, kind) for draw in pair_draws)
    # Pairs share points when trajectories are few: what was answered once is not asked again.
    return sorted(set(unique_points(after)) - set(unique_points(before)))
