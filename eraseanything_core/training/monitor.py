"""Measures a run on prompts that it does not train on, always at the same points.

The three scores, each a sum over all points:

- The concept score is the student's velocity on the line from the teacher's neutral prompt to its concept prompt,
  <v_s - v_n, v_c - v_n> / |v_c - v_n|^2. It is 1 for the un-erased model and 0 where the student is at the neutral
  prompt.
- The attention score is the student's attention to the concept's tokens over the teacher's.
- The drift is |v_s - v| / |v| on prompts to preserve.

A run stops on the concept score or the drift. The attention need not fall for a concept to be erased.
"""

import dataclasses

import torch
from torch import Tensor

from ..attention.columns import image_feature
from ..concepts import prompts
from ..protocols import ErasableModel
from .config import EraseConfig
from .plan import Plan, conds, generator, select_words
from .trajectories import Points, Trajectories
from .trajectory_cache import TrajectoryCache, run_sigmas

WALK_STEPS = 4  # of the trajectories on which the points lie
MEASURED_STEPS = (1, 2)  # trajectories take these in turn; 0 would be pure noise
PREVIEW_STEPS = 8
PREVIEW_PIXELS = 256
Scores = dict[str, list[float]]  # `pair` and one list a score


def stop_reason(config: EraseConfig, scores: Scores) -> str:
    """Why a run stops before its last pair; empty when it goes on."""
    if not scores.get("pair"):
        return ""
    pair = scores["pair"][-1]
    concept = scores["concept"][-1]
    drift = scores["drift"][-1]
    # The drift first: a model that is damaged must not pass for one in which the concept is erased.
    if config.stop_drift and drift > config.stop_drift:
        return f"stopped after step {pair}: the drift of {drift:.3f} is above {config.stop_drift:g}"
    if config.stop_score and concept <= config.stop_score:
        return f"stopped after step {pair}: the concept score of {concept:.3f} has reached {config.stop_score:g}"
    return ""


def bounds(config: EraseConfig) -> dict[str, float]:
    """The scores at which the run stops, by name; only those that are set."""
    limits = {"concept": config.stop_score, "drift": config.stop_drift}
    return {name: limit for name, limit in limits.items() if limit}


class Monitor:
    """The points and the teacher's answers there, computed once, and measurements of the student.

    Args:
        model: student and teacher; its LoRA is attached.
        plan: the run's, with monitoring on.

    Attributes:
        concept: trajectories of the held-out sentences.
        retain: trajectories of the held-out prompts to preserve.
        neutral: [p, s, c, h, w], the teacher's velocity for the neutral prompts.
        teacher_feature: [p, queries], the teacher's attention to the concept.
    """

    def __init__(self, model: ErasableModel, plan: Plan) -> None:
        self.model = model
        self.plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, sampling_steps=WALK_STEPS))
        # The complement of the seed: no draw here changes the training's own.
        rng = generator(~plan.config.seed, 0)
        cache = TrajectoryCache(model, self.plan)
        self.concept = cache.walk(plan.monitor_sentences, rng)
        self.retain = cache.walk(plan.monitor_retained, rng)
        self.neutral = cache.allocate(tuple(self.concept.v.shape))
        row, step = measured_points(self.concept)
        points = list(zip(row.tolist(), step.tolist(), strict=True))
        cache.fill_velocities(self.concept, points, lambda sentence: sentence.neutral, self.neutral)
        with torch.no_grad():
            _, self.teacher_feature = self._concept_answers(adapters=False)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The three scores of the student as it is now."""
        row, step = measured_points(self.concept)
        student, feature = self._concept_answers(adapters=True)
        neutral = self.neutral[row, step].to(student)
        line = self.concept.v[row, step].to(student) - neutral
        # The projection onto the line, with sums over all points: a mean of ratios would blow up where the line is
        # short.
        concept = ((student - neutral) * line).sum() / line.square().sum()

        row, step = measured_points(self.retain)
        x_t, sigma, teacher = self.retain.at(row, step, self.model.device)
        cond = conds(self.model, self.plan, [self.retain.sources[i] for i in row])
        # These prompts do not name the concept: whatever changes here is damage.
        change = self.model.velocity(x_t, sigma, cond, adapters=True) - teacher
        return {
            "concept": float(concept),
            "attention": float(feature.sum() / self.teacher_feature.sum()),
            "drift": float(change.norm() / teacher.norm()),
        }

    def _concept_answers(self, adapters: bool) -> tuple[Tensor, Tensor]:
        """Velocity [p, c, h, w] and attention feature [p, queries] at the concept's points."""
        row, step = measured_points(self.concept)
        x_t, sigma, _ = self.concept.at(row, step, self.model.device)
        concept = [self.concept.sources[i].concept for i in row]
        capture = self.model.capture(select_words(self.model, self.plan, concept), self.plan.config.attention_blocks)
        velocity = self.model.velocity(x_t, sigma, conds(self.model, self.plan, concept), adapters, capture)
        return velocity, image_feature(capture.maps)


def measured_points(walks: Trajectories) -> Points:
    """One point on each trajectory."""
    row = torch.arange(len(walks.sources))
    step = torch.tensor(MEASURED_STEPS)[row % len(MEASURED_STEPS)]
    return row, step


class PreviewSampler:
    """Small pictures from one noise: the concept before, the concept now, and a prompt to preserve now.

    Args:
        model: student and teacher.
        plan: the run's, with monitoring on.
    """

    def __init__(self, model: ErasableModel, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        config = plan.config
        # Each side is limited on its own, so a preview of a wide picture may be square.
        limit = PREVIEW_PIXELS // model.downscale
        height = min(limit, config.height // model.downscale)
        width = min(limit, config.width // model.downscale)
        self.noise = torch.randn(1, model.channels, height, width, generator=generator(config.seed, 0))
        self.sigmas = run_sigmas(model, dataclasses.replace(config, sampling_steps=PREVIEW_STEPS))
        self.before = self._x_0(plan.monitor_sentences[0].concept, adapters=False)

    def sample(self) -> Tensor:
        """x_0 of the three pictures, [3, c, h, w] on the CPU."""
        concept = self._x_0(self.plan.monitor_sentences[0].concept, adapters=True)
        retained = self._x_0(self.plan.monitor_retained[0], adapters=True)
        return torch.cat((self.before, concept, retained))

    def _x_0(self, prompt: prompts.Prompt, adapters: bool) -> Tensor:
        cond = conds(self.model, self.plan, [prompt])
        walk = list(self.model.trajectory(cond, self.noise, self.sigmas, adapters))
        x_0, _ = walk[-1]
        return x_0.cpu()
