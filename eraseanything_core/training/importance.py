"""Importance sampling of the points at which the model is trained.

Most of a trajectory says nothing about the concept: far from the noise its picture is settled, and the model predicts
the same with the word and without it. The gradient of L_esd is proportional to what the two predictions differ by. So
the chance of a point is, too (Katharopoulos and Fleuret, Not All Samples Are Created Equal, 2018):

    p(x_t) = |v_c - v_n| / sum over all points

Their weights 1 / p are left out. They would take back the emphasis on the points that decide what is drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .trajectories import Trajectories

EVEN_SHARE = 0.25  # of the retained points: what stays is held at all times, and most where the concept is changed


def erase_chances(concept: Trajectories, steps: Sequence[int]) -> Tensor:
    """The chance of each point of the concept's trajectories, [p, s]; they sum to 1, and are 0 at other steps.

    Args:
        concept: with the teacher's velocities for the sentence and for its neutral prompt at all of these steps.
        steps: at which points may lie.
    """
    assert concept.neutral is not None, "the neutral velocities come before the chances"
    difference = (concept.v - concept.neutral).flatten(2).double().pow(2).mean(2).sqrt()
    inside = torch.zeros_like(difference)
    inside[:, steps] = 1
    total = (difference * inside).sum()
    # A word that changes nothing leaves all points alike.
    return difference * inside / total if total else inside / inside.sum()


def retain_chances(chances: Tensor, rows: int) -> Tensor:
    """The chance of each point of retained prompts, [rows, s]: every prompt alike, and times as the concept's.

    Args:
        chances: of the concept's points, see `erase_chances`.
        rows: how many retained prompts there are.
    """
    steps = chances.shape[1]
    of_step = (1 - EVEN_SHARE) * chances.sum(0) + EVEN_SHARE / steps
    return of_step.expand(rows, steps) / rows
