"""What the teacher is asked for, all of it before the steps that need it.

A pool lasts `refresh` pairs. Its points are known when it is filled, because all chance comes from the seed and the
step; so the teacher's targets are computed there, once a point and many at a time, and a pair in between runs the
student alone. This leaves the objective what it is. What changes it: a pool smaller than the run has fewer sentences
and points, `rsc_samples` fewer still, and `on_policy_share` takes some x_t from the student's walk instead of the teacher's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import sampling
from ..attention.columns import image_feature
from ..concepts import prompts
from ..sampling import Points, Pool
from .config import EraseConfig
from .plan import Plan, conds, generator, selected


@dataclass(frozen=True)
class Draw:
    """The points of one pair, each a trajectory and a step of it; None where a loss is off."""

    erase: Points
    retain: Points | None
    maps: Points | None


@dataclass(frozen=True)
class Epoch:
    """The pools of `refresh` pairs, and what each pair takes from them.

    Attributes:
        concept: trajectories of sentences that hold the concept.
        retain: trajectories of prompts that must stay.
        draws: a step to its draws, `accumulate` of them.
    """

    concept: Pool
    retain: Pool | None
    draws: dict[int, list[Draw]]

    def tensors(self) -> dict[str, Tensor]:
        """What cannot be told from the seed, by name."""
        parts = {"concept": self.concept, "retain": self.retain}
        every = {f"{kind}.{name}": getattr(pool, name, None) for kind, pool in parts.items() for name in STORED}
        return {name: tensor for name, tensor in every.items() if tensor is not None}


STORED = ("x", "v", "neutral", "known")


def held(*made: Pool | None) -> int:
    """Bytes of the arrays of pools, which share one bound."""
    arrays = (getattr(pool, name, None) for pool in made for name in STORED)
    return sum(array.nbytes for array in arrays if array is not None)


def schedule(model, config: EraseConfig) -> Tensor:
    return sampling.shifted_sigmas(config.sampling_steps, model.mu if config.mu is None else config.mu)


def latent_shape(model, config: EraseConfig) -> tuple[int, int, int]:
    return model.channels, config.height // model.downscale, config.width // model.downscale


def new_epoch(model, plan: Plan, number: int, stored: dict[str, Tensor] | None = None, covered: int = 0) -> Epoch:
    """Fills the pools of pairs `number * refresh` and following, targets included.

    Args:
        model: the seam.
        plan: the run's.
        number: of the epoch.
        stored: what `Epoch.tensors` gave, to go on with.
        covered: the first pair for whose draws it has no targets, as the run had fewer steps then.
    """
    concept, retain = restored(model, plan, number, stored) if stored else pools(model, plan, number)
    draws = draw_all(plan.config, concept, retain, number)
    concept, retain = with_targets(model, plan, concept, retain, draws, number, covered)
    return Epoch(concept, retain, draws)


def restored(model, plan: Plan, number: int, stored: dict[str, Tensor]) -> tuple[Pool, Pool | None]:
    """The pools of `Epoch.tensors`, copied: those may be the map of a file that is to be replaced."""
    sigmas, copies = schedule(model, plan.config), {}
    for name, tensor in stored.items():
        beside = sum(copy.nbytes for copy in copies.values())
        copies[name] = sampling.allocate(tensor.shape, plan.config.cache_gib, beside).copy_(tensor)
    made = []
    for kind, sources in zip(("concept", "retain"), chosen_sources(plan, number), strict=True):
        tensors = {name: copies.get(f"{kind}.{name}") for name in STORED}
        made.append(Pool(sources, sigmas=sigmas, **tensors) if sources else None)
    return made[0], made[1]


def with_targets(
    model, plan: Plan, concept: Pool, retain: Pool | None, draws: dict[int, list[Draw]], number: int, covered: int
) -> tuple[Pool, Pool | None]:
    """The pools with all that the draws will ask of the teacher; what pairs before `covered` ask of it is there."""
    erase, kept, maps = (missing_targets(draws, kind, covered) for kind in ("erase", "retain", "maps"))
    concept = with_teacher(
        model, plan, concept, erase, student_rows(plan.config, number, plan.config.cached_trajectories)
    )
    concept = with_neutral(model, plan, concept, erase, held(concept, retain))
    if maps:
        concept = with_known(model, plan, concept, maps, held(concept, retain))
    if retain:
        rows = student_rows(plan.config, number, plan.config.retained_rows())
        retain = with_teacher(model, plan, retain, kept, rows)
    return concept, retain


def missing_targets(draws: dict[int, list[Draw]], kind: str, covered: int) -> list[tuple[int, int]]:
    """The points of a kind that pairs from `covered` on draw, and none before."""
    before, after = (
        unique([getattr(d, kind) for step, ds in draws.items() for d in ds if (step < covered) is side])
        for side in (True, False)
    )
    return sorted(set(after) - set(before))


def student_rows(config: EraseConfig, number: int, rows: int) -> int:
    """How many of a pool's first trajectories the student walks: none in the first pool, where it is the teacher."""
    return config.student_rows(rows) if number else 0


def chosen_sources(plan: Plan, number: int) -> tuple[list, list]:
    """What the trajectories of an epoch are made from, the sentences in turn."""
    config = plan.config
    return tuple(
        [sources[(number * rows + i) % len(sources)] for i in range(rows)]
        for sources, rows in ((plan.sentences, config.cached_trajectories), (plan.retained, config.retained_rows()))
    )


def pools(model, plan: Plan, number: int) -> tuple[Pool, Pool | None]:
    """Trajectories for sentences that hold the concept, and for prompts that must stay."""
    config, sigmas, rng = plan.config, schedule(model, plan.config), generator(plan.config.seed, -1 - number)
    made = []
    for sources in chosen_sources(plan, number):
        walked = student_rows(config, number, len(sources))
        made.append(fill_pool(model, plan, sources, sigmas, rng, walked, held(*made)) if sources else None)
    return made[0], made[1]


def fill_pool(
    model, plan: Plan, sources: list, sigmas: Tensor, rng: torch.Generator, walked: int = 0, beside: int = 0
) -> Pool:
    """One trajectory a source, a few at a time; the first `walked` are the student's own. See `sampling.room`."""
    shape, rows = latent_shape(model, plan.config), len(sources)
    noise = torch.randn(rows, *shape, generator=rng)
    texts = [s.concept if isinstance(s, prompts.Sentence) else s for s in sources]
    x = sampling.allocate((rows, len(sigmas), *shape), plan.config.cache_gib, beside)
    v = sampling.allocate((rows, len(sigmas) - 1, *shape), plan.config.cache_gib, beside + x.nbytes)
    for part in (*chunks(range(walked), plan.config), *chunks(range(walked, rows), plan.config)):
        cond = conds(model, plan, [texts[i] for i in part])
        walk = model.trajectory(cond, noise[part], sigmas, adapters=part[0] < walked)
        sampling.collect(walk, x[part[0] : part[-1] + 1], v[part[0] : part[-1] + 1])
    return Pool(sources, x, v, sigmas)


def chunks(items, config: EraseConfig) -> list[list]:
    """What the teacher does at a time."""
    items, size = list(items), 4 * config.batch_size
    return [items[i : i + size] for i in range(0, len(items), size)]


def draw_all(config: EraseConfig, concept: Pool, retain: Pool | None, number: int) -> dict[int, list[Draw]]:
    """The draws of an epoch's steps."""
    few = None
    if config.rsc_weight and config.rsc_samples:
        few = concept.draw(config.rsc_samples, config.rsc_sigma, generator(~config.seed, number))
    found = {}
    for step in range(number * config.refresh_every, min(config.steps, (number + 1) * config.refresh_every)):
        rng = generator(config.seed, step)
        found[step] = [draw_one(config, concept, retain, few, rng) for _ in range(config.gradient_accumulation_steps)]
    return found


def draw_one(config: EraseConfig, concept: Pool, retain: Pool | None, few: Points | None, rng: torch.Generator) -> Draw:
    """The points of one pair; `few` are those that the maps are limited to."""
    erase = concept.draw(config.batch_size, config.erase_sigma, rng)
    kept = retain.draw(config.retain_batch_size, (0.0, 1.0), rng) if retain else None
    maps = None
    if config.rsc_weight and few:
        chosen = torch.randint(len(few[0]), (config.batch_size,), generator=rng)
        maps = few[0][chosen], few[1][chosen]
    elif config.rsc_weight:
        maps = concept.draw(config.batch_size, config.rsc_sigma, rng)
    return Draw(erase, kept, maps)


def unique(points: list[Points | None]) -> list[tuple[int, int]]:
    """Each (trajectory, step) once."""
    given = [each for each in points if each]
    return sorted({(int(r), int(s)) for rows, steps in given for r, s in zip(rows, steps, strict=True)})


def with_teacher(model, plan: Plan, pool: Pool, points: list[tuple[int, int]], walked: int) -> Pool:
    """The teacher's own velocity where the student walked; elsewhere the walk itself has left it."""
    asked = [(r, s) for r, s in points if r < walked]
    return replace(pool, v=velocities(model, plan, pool, asked, lambda s: getattr(s, "concept", s), pool.v))


def with_neutral(model, plan: Plan, pool: Pool, points: list[tuple[int, int]], beside: int) -> Pool:
    """The teacher's velocity for the neutral prompts at the points; `beside` as in `sampling.room`."""
    place = pool.neutral
    if place is None:
        place = sampling.allocate(pool.v.shape, plan.config.cache_gib, beside)
    return replace(pool, neutral=velocities(model, plan, pool, points, lambda s: s.neutral, place))


def velocities(model, plan: Plan, pool: Pool, points: list[tuple[int, int]], prompt, place: Tensor) -> Tensor:
    """Writes the teacher's velocity for prompt(source) at the points into `place`, [p, s, c, h, w]."""
    for part in chunks(points, plan.config):
        row, step = torch.tensor(part).T
        x_t, sigma, _ = pool.at(row, step, model.device)
        chosen = conds(model, plan, [prompt(pool.sources[i]) for i in row])
        place[row, step] = model.velocity(x_t, sigma, chosen, adapters=False).to(place)
    return place


def with_known(model, plan: Plan, pool: Pool, points: list[tuple[int, int]], beside: int) -> Pool:
    """The teacher's attention features of synonym and irrelevant words at the points; see `known_features`."""
    place = pool.known
    for i in range(0, len(points), plan.config.batch_size):
        row, step = torch.tensor(points[i : i + plan.config.batch_size]).T
        x_t, sigma, _ = pool.at(row, step, model.device)
        found = known_features(model, plan, [pool.sources[i] for i in row], x_t, sigma)
        if place is None:
            place = sampling.allocate((*pool.v.shape[:2], *found.shape[1:]), plan.config.cache_gib, beside)
        place[row, step] = found.to(place)
    return replace(pool, known=place)


def known_features(model, plan: Plan, sentences: list[prompts.Sentence], x_t: Tensor, sigma: Tensor) -> Tensor:
    """F_syn and F_ir, each prompt with its own span, all at the same x_t: [b, 1 + K, queries]."""
    others = [p for s in sentences for p in (s.synonym, *s.irrelevant)]
    repeats = len(others) // len(sentences)
    x_t, sigma = x_t.repeat_interleave(repeats, 0), sigma.repeat_interleave(repeats, 0)
    size = len(others) if "batch" in plan.shortcuts else 1
    parts = [slice(i, i + size) for i in range(0, len(others), size)]
    found = [feature(model, plan, others[p], x_t[p], sigma[p], adapters=False) for p in parts]
    return torch.cat(found).unflatten(0, (len(sentences), -1))


def feature(model, plan: Plan, chosen: list[prompts.Prompt], x_t: Tensor, sigma: Tensor, adapters: bool) -> Tensor:
    """The attention that each prompt's word gets, [b, queries]; the forward ends at the last block that is read."""
    capture, cond = (
        model.capture(selected(model, plan, chosen), plan.config.attention_blocks),
        conds(model, plan, chosen),
    )
    run = model.columns if "stop" in plan.shortcuts else model.velocity
    run(x_t, sigma, cond, adapters=adapters, capture=capture)
    return image_feature(capture.maps)
