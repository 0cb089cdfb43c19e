"""Concept Ablation on pictures of the user: its points lie on lines to them, and nothing is walked."""

import dataclasses

import pytest
import torch

from eraseanything_core.erasers.registry import method_of
from eraseanything_core.training import trainer
from eraseanything_core.training.plan import conds, prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.unit.eraser_cases import config_of, nearness, trained
from tests.unit.toy_model import ToyModel, ToyText

pytestmark = pytest.mark.usefixtures("double_precision")

METHOD = "concept_ablation"
HASH = {"anchor_pictures": "of two pictures"}


@pytest.fixture
def pictures():
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(9))


def cache_of(pictures, model=None, report=None, **settings):
    config = config_of(METHOD, **HASH | settings)
    plan = dataclasses.replace(prepare(config, ToyText()), pictures=pictures)
    return TrajectoryCache(model or ToyModel(), plan, report), plan


def test_points_lie_on_lines_to_the_pictures_and_the_teacher_answers_there(pictures):
    model, counts = ToyModel(), []
    cache, plan = cache_of(pictures, model, lambda *count: counts.append(count))
    epoch = cache.epoch(0)
    walks, sigmas = epoch.concept, cache.sigmas
    assert torch.equal(walks.x[:, -1], pictures[[0, 1, 0]]), "each picture in its turn"
    noise = walks.x[:, :1]
    for step, t in enumerate(sigmas):
        torch.testing.assert_close(walks.x[:, step], ((1 - t) * walks.x[:, -1:] + t * noise)[:, 0])
    # Asked at the drawn points alone, for the anchor.
    assert counts[-1] == (sum(rows for rows, _, _ in model.asked),) * 2
    for draws in epoch.draws.values():
        for row, step in (draw.erase for draw in draws):
            x_t, t, v = walks.at(row, step, "cpu")
            anchor = conds(model, plan, [walks.sources[i].neutral for i in row])
            torch.testing.assert_close(v, model.velocity(x_t, t, anchor, False))


def test_another_epoch_has_other_noise_and_goes_on_with_the_pictures(pictures):
    cache, _ = cache_of(pictures)
    first, second = (cache.epoch(number).concept.x.clone() for number in (0, 1))
    assert torch.equal(second[:, -1], first[[1, 0, 1], -1]) and not torch.equal(second[:, 0], first[:, 0])


def test_a_run_on_pictures_is_resumed_to_the_same_bits(pictures, tmp_path):
    torch.set_default_dtype(torch.float32)
    pictures = pictures.float()
    _, plan = cache_of(pictures, steps=5, save_every=1)
    method = method_of(plan.config)
    whole = trainer.train(ToyModel(), plan, method=method)

    def stop(done, losses):
        if done == 3:
            raise KeyboardInterrupt

    first = trainer.train(ToyModel(), plan, progress=stop, run_dir=tmp_path / "run", method=method)
    second = trainer.train(ToyModel(), plan, run_dir=tmp_path / "run", method=method)
    assert first.steps == 3 and second.losses == whole.losses


def test_pictures_without_their_hash_are_no_run(pictures):
    """Else a resumed run could go on with others."""
    plan = dataclasses.replace(prepare(config_of(METHOD), ToyText()), pictures=pictures)
    with pytest.raises(AssertionError, match="belong to their hash"):
        TrajectoryCache(ToyModel(), plan)


@pytest.mark.parametrize(
    "name, settings, message",
    (
        ("esd", {}, "ESD takes no pictures: choose Concept Ablation"),
        (METHOD, {"on_policy_share": 0.5}, "pictures are no walks of the student: set on_policy_share to 0"),
    ),
)
def test_what_takes_no_pictures_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        trained(config_of(name, **HASH | settings))


def test_it_erases_the_toys_concept(pictures):
    """From 1, the original model, to under a half, by pictures that have nothing to do with the toy's own."""
    config = config_of(METHOD, steps=80, refresh_every=20, lr_low=0.03, rank=4, cached_trajectories=6, **HASH)
    model = ToyModel()
    plan = dataclasses.replace(prepare(config, ToyText()), pictures=pictures)
    trainer.train(model, plan, method=method_of(config))
    assert nearness(model, plan) < 0.5
