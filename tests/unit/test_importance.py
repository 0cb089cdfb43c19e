"""Points are drawn as often as they say something about the concept."""

import dataclasses

import pytest
import torch

from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.draws import draw_epoch
from eraseanything_core.training.importance import EVEN_SHARE, erase_chances, retain_chances
from eraseanything_core.training.trajectories import Trajectories

SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
# How far the two velocities are apart at each point: 3 trajectories, 4 times.
APART = torch.tensor([[4.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
DRAWS = 4000


def walks(apart=APART) -> Trajectories:
    v = apart[:, :, None, None, None].expand(3, 4, 2, 2, 2)
    x = torch.zeros(3, 5, 2, 2, 2)
    return Trajectories(["one", "two", "three"], x, v.clone(), SIGMAS, neutral=torch.zeros(3, 4, 2, 2, 2))


def shares(points, rows):
    """How often each point was drawn."""
    row, step = points
    return torch.bincount(row * 4 + step, minlength=4 * rows).reshape(rows, 4) / len(row)


def test_a_chance_is_the_difference_of_the_two_velocities():
    assert torch.allclose(erase_chances(walks()), APART.double() / 8)


def test_a_word_that_changes_nothing_leaves_all_points_alike():
    assert torch.allclose(erase_chances(walks(torch.zeros(3, 4))), torch.full((3, 4), 1 / 12).double())


def test_times_of_what_stays_follow_the_concepts_and_none_is_left_out():
    chances = retain_chances(APART / 8, rows=5)
    of_time = (1 - EVEN_SHARE) * torch.tensor([5 / 8, 3 / 8, 0.0, 0.0]) + EVEN_SHARE / 4
    assert torch.allclose(chances, (of_time / 5).expand(5, 4)) and chances.min() > 0


def test_points_are_drawn_with_their_chances():
    drawn = walks().draw(DRAWS, (0.0, 1.0), torch.Generator().manual_seed(0), APART / 8)
    assert torch.allclose(shares(drawn, 3), APART / 8, atol=0.03)


@pytest.mark.parametrize("window, times", [((0.0, 0.8), {1, 2, 3}), ((0.0, 0.5), {2, 3})])
def test_a_window_of_times_holds_whatever_the_chances(window, times):
    """In the second one no point has a chance, so all are alike."""
    _, step = walks().draw(DRAWS, window, torch.Generator().manual_seed(0), APART / 8)
    assert set(step.tolist()) <= times
    if window[1] == 0.5:
        assert set(step.tolist()) == times


def test_an_epoch_draws_with_them():
    config = EraseConfig("cat", rsc_weight=0.0, steps=400, refresh_every=400, batch_size=4, retain_batch_size=4)
    retain = dataclasses.replace(walks(), sources=["a", "b"], neutral=None)
    draws = draw_epoch(config, walks(), retain, 0, erase_chances(walks()))
    points = {kind: [getattr(draw, kind) for (draw,) in draws.values()] for kind in ("erase", "retain")}
    erased, kept = (tuple(map(torch.cat, zip(*points[kind], strict=True))) for kind in ("erase", "retain"))
    assert torch.allclose(shares(erased, 3), APART / 8, atol=0.05)
    assert torch.allclose(shares(kept, 2), retain_chances(APART / 8, 2), atol=0.05)
