"""Looking at a run from outside its losses: prompts that it does not train on, always at the same points.

The concept score is the student's velocity on the teacher's line from the neutral prompt to the concept,
<v_s - v_n, v_c - v_n> / |v_c - v_n|^2: 1 is the un-erased model, 0 the neutral prompt. The attention is the student's
column weight over the teacher's. The drift is |v_s - v| / |v| on prompts that must stay.
"""

import dataclasses

import torch
from torch import Tensor

from . import prompts
from .attention import image_feature
from .config import EraseConfig
from .plan import Plan, conds, generator, selected
from .pools import fill_pool, schedule, velocities
from .sampling import room

STEPS = 4  # of the walk to the points
LOOKS = (1, 2)  # which of its steps are looked at
PREVIEW_STEPS, PREVIEW_PIXELS = 8, 256
SCORES = ("concept", "attention", "drift")


def over(config: EraseConfig, seen: dict[str, list[float]]) -> str:
    """Why a run is to stop before its last pair, or an empty string."""
    if not seen.get("pair"):
        return ""
    pair, score, drift = (seen[name][-1] for name in ("pair", "concept", "drift"))
    if config.stop_drift and drift > config.stop_drift:
        return f"stopped after pair {pair}: the drift of {drift:.3f} is above {config.stop_drift:g}"
    if config.stop_score and score <= config.stop_score:
        return f"stopped after pair {pair}: the concept score of {score:.3f} has reached {config.stop_score:g}"
    return ""


class Watch:
    """The points, what the teacher says there, and the looks at the student."""

    def __init__(self, model, plan: Plan):
        self.model = model
        self.plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, sampling_steps=STEPS))
        rng, sigmas = generator(~plan.config.seed, 0), schedule(model, self.plan.config)
        self.concept = fill_pool(model, self.plan, plan.watched, sigmas, rng)
        self.kept = fill_pool(model, self.plan, plan.watched_kept, sigmas, rng)
        every = [(row, step) for row in range(len(plan.watched)) for step in LOOKS]
        place = room(self.concept.v.shape, plan.config.pool_gib)
        self.neutral = velocities(model, self.plan, self.concept, every, lambda s: s.neutral, place)
        with torch.no_grad():
            self.feature = self.student(adapters=False)[1]

    def points(self, pool) -> tuple[Tensor, Tensor]:
        """Every (trajectory, step) that is looked at."""
        rows = torch.arange(len(pool.sources)).repeat_interleave(len(LOOKS))
        return rows, torch.tensor(LOOKS).repeat(len(pool.sources))

    def student(self, adapters: bool = True) -> tuple[Tensor, Tensor]:
        """Velocity and attention feature at the concept's points."""
        row, step = self.points(self.concept)
        x_t, sigma, _ = self.concept.at(row, step, self.model.device)
        chosen = [self.concept.sources[i].concept for i in row]
        capture = self.model.capture(selected(self.model, self.plan, chosen), self.plan.config.map_blocks)
        v = self.model.velocity(x_t, sigma, conds(self.model, self.plan, chosen), adapters, capture)
        return v, image_feature(capture.maps)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """The scores of the student as it is."""
        row, step = self.points(self.concept)
        v, feature = self.student()
        neutral = self.neutral[row, step].to(v)
        line = self.concept.v[row, step].to(v) - neutral
        concept = ((v - neutral) * line).sum() / line.square().sum()
        row, step = self.points(self.kept)
        x_t, sigma, teacher = self.kept.at(row, step, self.model.device)
        kept = conds(self.model, self.plan, [self.kept.sources[i] for i in row])
        moved = self.model.velocity(x_t, sigma, kept, adapters=True) - teacher
        found = concept, feature.sum() / self.feature.sum(), moved.norm() / teacher.norm()
        return dict(zip(SCORES, (float(value) for value in found), strict=True))


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
