"""EraseFlow (arXiv 2511.00804, NeurIPS 2025): the concept's prompt is to walk where the anchor's walks.

L = ( sum over steps of log p_student(x_s | x_t, c) - log p(x_s | x_t, a)  +  z  -  beta )^2

The steps are those of a stochastic sampler on the frozen model's trajectory of the anchor a, whose transitions are
Gaussian; see `sampling.noisy_step`. z is a learned scalar, beta the constant reward. A step's log-ratio is the mean
over the latent's values, so beta means the same at any resolution.

The gradient 2 (sum + z - beta) d(sum) is that of the steps one after the other, once the sum is known. So a first pass
without gradients finds the sum, and then each step has a graph of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import sampling
from ..training.draws import Draw
from ..training.method import Method, Pair, setting
from ..training.objective import Losses
from ..training.plan import conds
from .concept_ablation import ABLATION_SETTINGS

FLOW_SETTINGS: dict[str, Any] = ABLATION_SETTINGS | {
    "targets": "all",
    "walk_noise": 0.7,
    "own_times": False,
}


@dataclass(frozen=True)
class FlowSettings:
    """What EraseFlow has beside the settings of a run."""

    beta: float = setting(2.5, "The reward that a trajectory of the anchor gets for the concept's prompt.", 0.0, 1000.0)
    z_rate: float = setting(0.01, "How fast the learned scalar z follows, per step.", 0.0, 1.0)


class EraseFlow(Method):
    """EraseFlow: trajectory balance with a constant reward."""

    name = "eraseflow"
    label = "EraseFlow"
    own_settings = FlowSettings
    reads_attention = False
    takes_divergence = False

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return FLOW_SETTINGS

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """`balance`, in as many graphs as a trajectory has steps."""
        rows, _ = draw.erase
        steps = range(len(pair.epoch.concept.sigmas) - 1)
        with torch.no_grad():
            known = torch.stack([log_ratio(pair, rows, step) for step in steps])  # [steps, b]
        z = pair.remembered("z", 0.0)
        gap = known.sum(0) + z - self.own.beta  # [b]
        # dL/dz = 2 gap; a step of plain descent.
        pair.remember("z", z - self.own.z_rate * float(2 * gap.mean()))
        loss = gap.square().mean() / len(steps)
        for step, before in zip(steps, known, strict=True):
            # Its value is this step's share of L, its gradient that of L along this step.
            yield {"balance": loss + (2 * gap * (log_ratio(pair, rows, step) - before)).mean()}


def log_ratio(pair: Pair, rows: Tensor, step: int) -> Tensor:
    """log p_student(x_s | x_t, c) - log p(x_s | x_t, a) of one step of some trajectories, mean over values, [b]."""
    model = pair.model
    walks = pair.epoch.concept
    x_t, sigma, anchor = walks.at(rows, torch.full_like(rows, step), model.device)
    x_s = walks.x[rows, step + 1].to(x_t)
    concept = conds(model, pair.plan, [walks.sources[i].concept for i in rows])
    student = model.velocity(x_t, sigma, concept, adapters=True)
    t, s = walks.sigmas[step], walks.sigmas[step + 1]
    errors = []
    for v in (student, anchor):
        mean, deviation = sampling.noisy_step(x_t, v, t, s, pair.config.walk_noise)
        errors.append(((x_s - mean) / (model.noise_scale * deviation.to(x_t))).square().mean((1, 2, 3)))
    of_student, of_anchor = errors
    return (of_anchor - of_student) / 2
