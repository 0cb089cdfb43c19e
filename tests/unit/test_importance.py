"""Points are drawn as often as they say something about the concept."""

import dataclasses

import pytest
import torch

from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.draws import draw_epoch
from eraseanything_core.training.importance import EVEN_SHARE, erase_chances, retain_chances
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectories import Trajectories
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.unit.eraser_cases import config_of
from tests.unit.toy_model import ToyModel, ToyText

SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
# How far the two velocities are apart at each point: 3 trajectories, 4 times.
APART = torch.tensor([[4.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
DRAWS = 4000
EVERY = range(4)  # step
BY_CHANCE = {"importance_sampling": True, "shared_points": True}


def walks(apart=APART) -> Trajectories:
    v = apart[:, :, None, None, None].expand(3, 4, 2, 2, 2)
    x = torch.zeros(3, 5, 2, 2, 2)
    return Trajectories(["one", "two", "three"], x, v.clone(), SIGMAS, neutral=torch.zeros(3, 4, 2, 2, 2))


def shares(points, rows):
    """How often each point was drawn."""
    row, step = points
    return torch.bincount(row * 4 + step, minlength=4 * rows).reshape(rows, 4) / len(row)


def test_a_chance_is_the_difference_of_the_two_velocities():
    assert torch.allclose(erase_chances(walks(), EVERY), APART.double() / 8)


def test_a_word_that_changes_nothing_leaves_all_points_alike():
    assert torch.allclose(erase_chances(walks(torch.zeros(3, 4)), EVERY), torch.full((3, 4), 1 / 12).double())


@pytest.mark.parametrize("apart", (APART, torch.zeros(3, 4)))
def test_outside_the_window_there_is_no_chance(apart):
    chances = erase_chances(walks(apart), [1, 2])
    assert not chances[:, [0, 3]].any() and chances.sum() == pytest.approx(1)


def test_times_of_what_stays_follow_the_concepts_and_none_is_left_out():
    chances = retain_chances(APART / 8, rows=5)
    of_time = (1 - EVEN_SHARE) * torch.tensor([5 / 8, 3 / 8, 0.0, 0.0]) + EVEN_SHARE / 4
    assert torch.allclose(chances, (of_time / 5).expand(5, 4)) and chances.min() > 0


def test_points_are_drawn_with_their_chances():
    drawn = walks().draw(DRAWS, 0.0, torch.Generator().manual_seed(0), APART / 8)
    assert torch.allclose(shares(drawn, 3), APART / 8, atol=0.03)


@pytest.mark.parametrize("lowest, times", [(0.7, {0, 1}), (1.0, {0})])
def test_a_lowest_time_holds_whatever_the_chances(lowest, times):
    _, step = walks().draw(DRAWS, lowest, torch.Generator().manual_seed(0), APART / 8)
    assert set(step.tolist()) == times


def test_where_no_point_has_a_chance_all_are_alike():
    nowhere = torch.zeros(3, 4)
    _, step = walks().draw(DRAWS, 0.3, torch.Generator().manual_seed(0), nowhere)
    assert set(step.tolist()) == {0, 1, 2}


def test_an_epoch_draws_with_them():
    config = EraseConfig("cat", rsc_weight=0.0, steps=400, refresh_every=400, batch_size=4, retain_batch_size=4)
    retain = dataclasses.replace(walks(), sources=["a", "b"], neutral=None)
    draws = draw_epoch(config, walks(), retain, 0, erase_chances(walks(), EVERY))
    points = {kind: [getattr(draw, kind) for (draw,) in draws.values()] for kind in ("erase", "retain")}
    erased, kept = (tuple(map(torch.cat, zip(*points[kind], strict=True))) for kind in ("erase", "retain"))
    assert torch.allclose(shares(erased, 3), APART / 8, atol=0.05)
    assert torch.allclose(shares(kept, 2), retain_chances(APART / 8, 2), atol=0.05)


@pytest.mark.parametrize("lowest, walked, asked", [(0.0, 4, 4), (0.5, 3, 3), (0.7, 3, 2)])
def test_the_teacher_is_asked_above_the_lowest_time_alone(lowest, walked, asked):
    """The times are 1, 0.83, 0.62 and 0.35; a walk ends where nothing asks for its last velocity."""
    config = config_of("eraseanything", **BY_CHANCE, erase_time=lowest)
    model = ToyModel()
    plan = prepare(config, ToyText())
    model.attach(config.targets, config.rank, torch.Generator().manual_seed(0))
    told = []
    cache = TrajectoryCache(model, plan, lambda done, total: told.append((done, total)))
    epoch = cache.epoch(0)
    points = {
        point for draws in epoch.draws.values() for draw in draws for point in zip(*map(tuple, draw.erase), strict=True)
    }
    times = cache.sigmas[[int(step) for _, step in points]]
    assert times.min() >= lowest
    kept = {tuple(map(int, point)) for (draw,) in epoch.draws.values() for point in zip(*draw.retain, strict=True)}
    assert sum(rows for rows, *_ in model.asked) == 3 * walked + 3 * asked + len(kept)
    assert told[-1] == (told[-1][1],) * 2, "the bar comes to its end"
    assert epoch.concept.x[:, len(cache.sigmas) - 2].any(), "what stays is asked at the last step too"
