"""Concept Ablation (Kumari et al., 2023), model-based: the concept's prompt is to look like its anchor's.

L = mean( v_student(x_t, c) - sg v(x_t, a) )^2, x_t on the frozen model's trajectory of the anchor prompt a, which is
the same sentence with the anchor in the concept's place (`EraseConfig.neutral`, as `{anchor}`).
"""

import dataclasses
from typing import Any

import torch

from ..protocols import ErasableModel
from ..training import losses
from ..training.plan import Plan, conds, generator
from ..training.trajectories import Trajectories
from ..training.trajectory_cache import TrajectoryCache
from .trained import StepLosses

ABLATION_SETTINGS: dict[str, Any] = {  # plain sentences of the concept itself
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
    "rsc_weight": 0.0,
    "targets": "add_k+add_v+to_k+to_v",  # the official ones
}


class Ablation:
    """The loss of Concept Ablation, step by step; a `trained.ErasureMethod`.

    Args:
        model: student and teacher.
        plan: the run's.

    Attributes:
        walks: the present epoch's trajectories of anchors.
    """

    def __init__(self, model: ErasableModel, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.walks: Trajectories | None = None

    def losses(self, step: int) -> StepLosses:
        """The loss at the points of one step."""
        config = self.plan.config
        # From the seed and the step's number alone, as in the trainer: no step's chance depends on another's.
        rng = generator(config.seed, step)
        if self.walks is None or step % config.refresh_every == 0:
            self.walks = anchor_trajectories(self.model, self.plan, step // config.refresh_every)
        row, sigma_step = self.walks.draw(config.batch_size, config.erase_sigma, rng)
        x_t, sigma, teacher = self.walks.at(row, sigma_step, self.model.device)
        # The teacher was given the anchor, the student is given the concept at the same point.
        concept = conds(self.model, self.plan, [self.walks.sources[i].concept for i in row])
        # The same mean square as retaining, but with unlike prompts: the concept's velocity becomes the anchor's.
        loss = losses.retain_loss(self.model.velocity(x_t, sigma, concept, adapters=True), teacher)
        return {"ablation": loss}, loss


def anchor_trajectories(model: ErasableModel, plan: Plan, epoch: int) -> Trajectories:
    """Trajectories of the frozen model for the anchors of sentences, each with its sentence as the source."""
    config = plan.config
    # The negative numbers are the epochs', as in the trainer's cache; those from 0 on are the steps'.
    rng = generator(config.seed, -1 - epoch)
    chosen = torch.randint(len(plan.sentences), (config.cached_trajectories,), generator=rng).tolist()
    sentences = [plan.sentences[i] for i in chosen]
    anchors = [sentence.neutral for sentence in sentences]
    walks = TrajectoryCache(model, plan).walk(anchors, rng)
    # The walk is the anchor's, but a step needs the sentence, whose concept the student is given.
    return dataclasses.replace(walks, sources=sentences)
