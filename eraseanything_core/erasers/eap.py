"""EAP, adversarial preservation (Bui et al., NeurIPS 2024), for Flux, written from the paper.

L = mean( v_student(x_t, c) - sg v_esd )^2 + mean( v_student(x_t, a) - sg v(x_t, a) )^2

v_esd is ESD's target, and a are the prompts of R that the eraser damages most; R are the prompts that must stay. The
worst of them are found by looking at every one, without gradients, every few steps. The paper climbs to them through a
Gumbel softmax over R's embeddings.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..protocols import ErasableModel
from ..training.objective import erase_graphs, preserve_graphs, weighted_sum
from ..training.plan import Plan, conds, generator
from ..training.trajectories import Trajectories
from ..training.trajectory_cache import Epoch, TrajectoryCache
from .esd import ESD_SETTINGS
from .trained import StepLosses

SEARCH_EVERY = 10  # steps between two looks at R
WORST_SHARE = 0.25  # of R, to draw from until the next look
EAP_SETTINGS: dict[str, Any] = ESD_SETTINGS | {  # ESD's, with prompts that must stay
    "retain_weight": 1.0,
    "on_policy_share": 0.0,
    "cached_retain_trajectories": 32,
    "refresh_every": 40,
}


class AdversarialPreservation:
    """The two losses of EAP, step by step; a `trained.ErasureMethod`.

    Args:
        model: student and teacher.
        plan: the run's.

    Attributes:
        epoch: the present trajectories, with the teacher's answers.
        worst: the retained trajectories that were damaged most at the last look.
    """

    def __init__(self, model: ErasableModel, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self.cache = TrajectoryCache(model, plan)
        self.epoch: Epoch | None = None
        self.worst = torch.empty(0, dtype=torch.long)

    def losses(self, step: int) -> StepLosses:
        """The losses at the points of one step.

        Raises:
            ValueError: the settings leave no prompts that must stay.
        """
        config = self.plan.config
        # The complement keeps these draws apart from those of the epoch, which come from the seed itself.
        rng = generator(~config.seed, step)
        is_refreshed = self.epoch is None or step % config.refresh_every == 0
        if self.epoch is None or is_refreshed:
            self.epoch = self.cache.epoch(step // config.refresh_every)
        retain = self.epoch.retain
        if retain is None:
            raise ValueError("EAP needs prompts that must stay: set retain_weight above 0 and retain_loss to teacher")
        # New trajectories have other indices, so the old choice means nothing on them.
        if is_refreshed or step % SEARCH_EVERY == 0:
            self.worst = hardest(damage(self.model, self.plan, retain, rng))
        draw = self.epoch.draws[step][0]
        chosen = self.worst[torch.randint(len(self.worst), (config.retain_batch_size,), generator=rng)]
        if draw.retain is not None:  # the steps of the walk stay as drawn, on other trajectories
            draw = dataclasses.replace(draw, retain=(chosen, draw.retain[1]))
        # EAP has one graph a level, so only the first of each is taken.
        erase = next(erase_graphs(self.model, self.plan, self.epoch, draw))
        preserve = next(preserve_graphs(self.model, self.plan, self.epoch, draw))
        step_losses = erase | preserve
        return step_losses, weighted_sum(step_losses, config)


@torch.no_grad()
def damage(model: ErasableModel, plan: Plan, walks: Trajectories, rng: torch.Generator) -> Tensor:
    """How far the student is from the teacher at one point of every trajectory, [trajectories]."""
    rows = torch.arange(len(walks.sources))
    # One random time each: damage differs along a walk, and the average over many looks is what counts.
    steps = torch.randint(len(walks.sigmas) - 1, (len(rows),), generator=rng)
    errors = []
    for part in rows.split(4 * plan.config.batch_size):  # without a graph a batch can be larger
        x_t, sigma, teacher = walks.at(part, steps[part], model.device)
        prompts = conds(model, plan, [walks.sources[i] for i in part])
        student = model.velocity(x_t, sigma, prompts, adapters=True)
        errors.append((student - teacher).pow(2).mean((1, 2, 3)).cpu())
    return torch.cat(errors)


def hardest(damages: Tensor) -> Tensor:
    """The indices of the trajectories that are damaged most."""
    # A share and not one prompt: between two looks the worst one is repaired first, and others take its place.
    count = max(1, round(WORST_SHARE * len(damages)))
    return damages.topk(count).indices
