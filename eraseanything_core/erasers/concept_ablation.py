"""Concept Ablation (Kumari et al., 2023): the concept's prompt is to look like its anchor's.

model:  L = mean( v_student(x_t, c) - sg v(x_t, a) )^2, x_t on the frozen model's trajectory of the anchor prompt a
noise:  L = mean( v_student(x_t, c) - (n - x_a) )^2,    x_t = (1 - t) x_a + t n, x_a the picture at its end
prior:  the same with v_student(x_t, a), so that the anchor stays

The anchor is the neutral text of the run, by default the same sentence with the anchor in the concept's place. With
pictures of the user, x_a are these in both forms, and x_t = (1 - t) x_a + t n, as in the paper; see
`training.trajectory_cache`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..protocols import ErasableModel
from ..training.draws import Draw
from ..training.method import Method, Pair, setting
from ..training.objective import Losses
from ..training.plan import conds
from ..training.trajectories import Trajectories
from ..transfers import on_device

ABLATION_SETTINGS: dict[str, Any] = {  # plain sentences of the concept itself
    "walk": "neutral",
    "importance_sampling": False,
    "on_policy_share": 0.0,
    "targets": "text and image k,v",  # the official ones
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}


@dataclass(frozen=True)
class AblationSettings:
    """What Concept Ablation has beside the settings of a run."""

    target: str = setting(
        "model",
        "What the concept's prompt is led to. model: the original model's prediction for the anchor; noise: the noise "
        "of the anchor's pictures.",
        choices=("model", "noise"),
    )
    prior_weight: float = setting(0.0, "Weight of the same loss for the anchor's own prompt.", 0.0, 100.0)


class ConceptAblation(Method):
    """Concept Ablation, model-based or noise-based."""

    name = "concept_ablation"
    label = "Concept Ablation"
    own_settings = AblationSettings
    reads_attention = False
    takes_divergence = False
    takes_pictures = True

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return ABLATION_SETTINGS

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """`ablation`, and with a weight `prior`, each from a forward of its own."""
        walks = pair.epoch.concept
        row, step = draw.erase
        if self.own.target == "noise":
            x_t, sigma, target = noised_anchors(pair.model, walks, row, pair.rng)
        else:
            # The walk is the anchor's, or a line to a picture of it: the velocity is the teacher's for the anchor.
            x_t, sigma, target = walks.at(row, step, pair.model.device)
        sentences = [walks.sources[i] for i in row]
        concept = conds(pair.model, pair.plan, [sentence.concept for sentence in sentences])
        yield {"ablation": F.mse_loss(pair.model.velocity(x_t, sigma, concept, adapters=True), target)}
        if self.own.prior_weight:
            anchor = conds(pair.model, pair.plan, [sentence.neutral for sentence in sentences])
            prior = F.mse_loss(pair.model.velocity(x_t, sigma, anchor, adapters=True), target)
            yield {"prior": self.own.prior_weight * prior}


def noised_anchors(
    model: ErasableModel, walks: Trajectories, row: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t [b, c, h, w] of the anchors' pictures with new noise, t [b], and n - x_a [b, c, h, w]."""
    x_a = on_device(walks.x[row, -1], model.device)
    # Drawn on the CPU: equal seeds then give equal draws on every device.
    noise = on_device(model.noise_scale * torch.randn(x_a.shape, generator=rng), model.device)
    sigma = on_device(model.last_time * torch.rand(len(row), generator=rng), model.device)
    t = sigma[:, None, None, None]
    return (1 - t) * x_a + t * noise, sigma, noise - x_a
