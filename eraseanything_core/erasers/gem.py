"""GEM (arXiv 2606.00140): attraction to the anchor and repulsion from the concept, which stop by themselves.

L = mean over the batch of relu( |v_student(x_t, c) - v(x_t, a)| - margin |v_student(x_t, c) - v(x_t, c)| )

|.| is the root of the mean square. The hinge is 0, and its gradient too, once the prediction is `1 / margin` times as
far from the concept's as from the anchor's. A batch holds several times of the student's own first steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..training.draws import Draw
from ..training.method import Method, Pair, setting
from ..training.objective import Losses, erasing_points
from ..training.plan import conds

GEM_SETTINGS: dict[str, Any] = {
    "targets": "text and image q,k",
    "batch_size": 6,  # times in one update
    "erase_time": 0.75,  # of the first steps
    "on_policy_share": 1.0,
    "importance_sampling": False,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}
SMALLEST = 1e-12  # under a root: its gradient at 0 is infinite


@dataclass(frozen=True)
class GemSettings:
    """What GEM has beside the settings of a run."""

    margin: float = setting(
        0.25,
        "The loss ends where the prediction is 1 / margin times as far from the concept's as from the anchor's.",
        0.0,
        1.0,
    )


class Gem(Method):
    """GEM: a hinge between anchor and concept."""

    name = "gem"
    label = "GEM"
    own_settings = GemSettings
    reads_attention = False
    takes_divergence = False

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return GEM_SETTINGS

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """`hinge`, from one forward."""
        x_t, sigma, concept, anchor = erasing_points(pair.model, pair.epoch, draw)
        sources = pair.epoch.concept.sources
        prompts = conds(pair.model, pair.plan, [sources[i].concept for i in draw.erase[0]])
        student = pair.model.velocity(x_t, sigma, prompts, adapters=True)
        yield {"hinge": hinge(student, anchor, concept, self.own.margin)}


def hinge(student: Tensor, anchor: Tensor, concept: Tensor, margin: float) -> Tensor:
    """The loss from three velocities [b, c, h, w]; only the student's has a gradient."""
    return F.relu(distance(student, anchor) - margin * distance(student, concept)).mean()


def distance(student: Tensor, other: Tensor) -> Tensor:
    """The root of the mean square of each row, [b]."""
    return ((student - other).square().mean((1, 2, 3)) + SMALLEST).sqrt()
