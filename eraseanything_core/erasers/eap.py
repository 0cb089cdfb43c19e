"""EAP, adversarial preservation (Bui et al., NeurIPS 2024), for Flux, written from the paper.

L = mean( v_student(x_t, c) - sg v_esd )^2 + mean( v_student(x_t, a) - sg v(x_t, a) )^2

v_esd is ESD's target, and a are the prompts of R that the eraser damages most; R are the prompts that must stay. The
worst of them are found by looking at every one, without gradients, every few steps. The paper climbs to them through a
Gumbel softmax over R's embeddings.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..protocols import ErasableModel
from ..training.draws import Draw
from ..training.method import Method, Pair, setting
from ..training.plan import Plan, conds, generator
from ..training.trajectories import Trajectories
from .esd import ESD_SETTINGS, VARIANTS

EAP_SETTINGS: dict[str, Any] = ESD_SETTINGS | {  # ESD's, with prompts that must stay
    "targets": VARIANTS["strict"],
    "retain_weight": 1.0,
    "retain_loss": "teacher",
    # Any point of a retained prompt may be needed, so the teacher walks with each of them.
    "shared_points": False,
    "on_policy_share": 0.0,
    "cached_retain_trajectories": 32,
}


@dataclass(frozen=True)
class EapSettings:
    """What EAP has beside the settings of a run."""

    search_every: int = setting(10, "Steps between two looks at all prompts that must stay.", 1, 100000)
    worst_share: float = setting(0.25, "Share of these prompts that is preserved until the next look.", 0.01, 1.0)


class AdversarialPreservation(Method):
    """EAP: ESD, with a preserving loss on the prompts that it damages most."""

    name = "eap"
    label = "EAP"
    own_settings = EapSettings
    needs_retained = True
    any_retained = True

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return EAP_SETTINGS

    def draws(self, pair: Pair) -> list[Draw]:
        """The points of the pair, those of retained prompts on the ones that are damaged most."""
        # The complement keeps these draws apart from those of the epoch, which come from the seed itself.
        rng = generator(~pair.config.seed, pair.step)
        retain = pair.epoch.retain
        assert retain is not None, "`check_method` has seen that something is retained"
        # New trajectories have other indices, so the old choice means nothing on them.
        if pair.step % pair.config.refresh_every == 0 or pair.step % self.own.search_every == 0:
            damages = damage(pair.model, pair.plan, retain, rng)
            pair.remember("worst", hardest(damages, self.own.worst_share).tolist())
        worst = torch.tensor(pair.remembered("worst", []))
        replaced = []
        for draw in super().draws(pair):
            assert draw.retain is not None, "likewise"
            rows, steps = draw.retain
            chosen = worst[torch.randint(len(worst), (len(rows),), generator=rng)]
            # The steps of the walk stay as drawn, on other trajectories.
            replaced.append(dataclasses.replace(draw, retain=(chosen, steps)))
        return replaced


@torch.no_grad()
def damage(model: ErasableModel, plan: Plan, walks: Trajectories, rng: torch.Generator) -> Tensor:
    """How far the student is from the teacher at one point of every trajectory, [trajectories]."""
    rows = torch.arange(len(walks.sources))
    # One random time each: damage differs along a walk, and the average over many looks is what counts.
    steps = torch.randint(walks.v.shape[1], (len(rows),), generator=rng)
    errors = []
    for part in rows.split(4 * plan.config.batch_size):  # without a graph a batch can be larger
        x_t, sigma, teacher = walks.at(part, steps[part], model.device)
        prompts = conds(model, plan, [walks.sources[i] for i in part])
        student = model.velocity(x_t, sigma, prompts, adapters=True)
        errors.append((student - teacher).pow(2).mean((1, 2, 3)).cpu())
    return torch.cat(errors)


def hardest(damages: Tensor, share: float) -> Tensor:
    """The indices of the trajectories that are damaged most."""
    # A share and not one prompt: between two looks the worst one is repaired first, and others take its place.
    count = max(1, round(share * len(damages)))
    return damages.topk(count).indices
