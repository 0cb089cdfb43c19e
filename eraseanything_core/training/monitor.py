"""Looking at a run from outside its losses: prompts that it does not train on, always at the same points.

The concept score is the student's velocity on the teacher's line from the neutral prompt to the concept,
<v_s - v_n, v_c - v_n> / |v_c - v_n|^2: 1 is the un-erased model, 0 the neutral prompt. The attention is the student's
column weight over the teacher's. The drift is |v_s - v| / |v| on prompts that must stay. Each sums over all points.
A run stops on the first and the last; the attention need not fall for a concept to be gone.
"""

import dataclasses

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import prompts
from ..sampling import Pool, allocate
from .config import EraseConfig
from .plan import Plan, conds, generator, selected
from .trajectory_cache import fill_pool, schedule, velocities

STEPS = 4  # of the walk to the points
LOOKS = (1, 2)  # which of its steps are looked at, one a sentence, in turn
PREVIEW_STEPS, PREVIEW_PIXELS = 8, 256
SCORES = ("concept", "attention", "drift")


def stop_reason(config: EraseConfig, seen: dict[str, list[float]]) -> str:
    """Why a run is to stop before its last pair, or an empty string."""
    if not seen.get("pair"):
        return ""
    pair, score, drift = (seen[name][-1] for name in ("pair", "concept", "drift"))
    if config.stop_drift and drift > config.stop_drift:
        return f"stopped after pair {pair}: the drift of {drift:.3f} is above {config.stop_drift:g}"
    if config.stop_score and score <= config.stop_score:
        return f"stopped after pair {pair}: the concept score of {score:.3f} has reached {config.stop_score:g}"
    return ""


def bounds(config: EraseConfig) -> dict[str, float]:
    """The scores at which the run is over, by curve."""
    return {name: at for name, at in (("concept", config.stop_score), ("drift", config.stop_drift)) if at}


class Watch:
    """The points, what the teacher says there, and the looks at the student."""

    def __init__(self, model, plan: Plan):
        self.model = model
        self.plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, sampling_steps=STEPS))
        rng, sigmas = generator(~plan.config.seed, 0), schedule(model, self.plan.config)
        self.concept = fill_pool(model, self.plan, plan.watched, sigmas, rng)
        self.kept = fill_pool(model, self.plan, plan.watched_kept, sigmas, rng)
        place = allocate(self.concept.v.shape, plan.config.cache_gib)
        self.neutral = velocities(model, self.plan, self.concept, points(self.concept), lambda s: s.neutral, place)
        with torch.no_grad():
            self.feature = self.student(adapters=False)[1]

    def student(self, adapters: bool = True) -> tuple[Tensor, Tensor]:
        """Velocity and attention feature at the concept's points."""
        row, step = torch.tensor(points(self.concept)).T
        x_t, sigma, _ = self.concept.at(row, step, self.model.device)
        chosen = [self.concept.sources[i].concept for i in row]
        capture = self.model.capture(selected(self.model, self.plan, chosen), self.plan.config.attention_blocks)
        v = self.model.velocity(x_t, sigma, conds(self.model, self.plan, chosen), adapters, capture)
        return v, image_feature(capture.maps)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """The scores of the student as it is."""
        row, step = torch.tensor(points(self.concept)).T
        v, feature = self.student()
        neutral = self.neutral[row, step].to(v)
        line = self.concept.v[row, step].to(v) - neutral
        concept = ((v - neutral) * line).sum() / line.square().sum()
        row, step = torch.tensor(points(self.kept)).T
        x_t, sigma, teacher = self.kept.at(row, step, self.model.device)
        kept = conds(self.model, self.plan, [self.kept.sources[i] for i in row])
        moved = self.model.velocity(x_t, sigma, kept, adapters=True) - teacher
        found = concept, feature.sum() / self.feature.sum(), moved.norm() / teacher.norm()
        return dict(zip(SCORES, (float(value) for value in found), strict=True))


def points(pool: Pool) -> list[tuple[int, int]]:
    """The (trajectory, step) pairs that are looked at; no more than the teacher takes at a time."""
    return [(row, LOOKS[row % len(LOOKS)]) for row in range(len(pool.sources))]


class Previews:
    """Small pictures from fixed seeds: the concept before, the concept now, a neighbour now."""

    def __init__(self, model, plan: Plan):
        self.model, self.plan = model, plan
        cells = PREVIEW_PIXELS // model.downscale
        shape = [min(cells, side // model.downscale) for side in (plan.config.height, plan.config.width)]
        self.noise = torch.randn(1, model.channels, *shape, generator=generator(plan.config.seed, 0))
        self.sigmas = schedule(model, dataclasses.replace(plan.config, sampling_steps=PREVIEW_STEPS))
        self.before = self.walk(plan.watched[0].concept, adapters=False)

    def walk(self, prompt: prompts.Prompt, adapters: bool) -> Tensor:
        cond = conds(self.model, self.plan, [prompt])
        return list(self.model.trajectory(cond, self.noise, self.sigmas, adapters))[-1][0].cpu()

    def row(self) -> Tensor:
        """x_0 of the three, [3, c, h, w]."""
        now = (self.walk(p, adapters=True) for p in (self.plan.watched[0].concept, self.plan.watched_kept[0]))
        return torch.cat((self.before, *now))
