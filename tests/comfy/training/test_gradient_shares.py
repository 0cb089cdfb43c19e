"""Weights that follow from shares of the gradient, and points that are drawn by what they say about the concept."""

import dataclasses

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.training import gradient_shares
from eraseanything_core.training.gradient_shares import shared_weights
from eraseanything_core.training.presets import run_config
from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.comfy.training.test_never_lost import stop_at
from tests.comfy.training.test_options import first_pair  # noqa: F401

SHARES = {"attn_share": 0.2, "rsc_share": 0.1}
SUMMED = {"alternate": False, "max_grad_norm": 1e9, "retain_weight": 0.0}


def weights_of(patcher, plan):
    with training_session(patcher) as model:
        lora = model.attach(plan.config.targets, plan.config.rank, torch.Generator())
        return shared_weights(model, plan, TrajectoryCache(model, plan).epoch(0), lora)


def test_each_loss_has_its_share_of_the_first_gradient(patcher, first_pair, monkeypatch):  # noqa: F811
    monkeypatch.setattr(gradient_shares, "MEASURED_PAIRS", 1)
    found = weights_of(patcher, first_pair(SUMMED | SHARES).plan)
    assert set(found) == {"attn_weight", "rsc_weight"}
    weights = found | {"esd_weight": 1.0}
    whole = first_pair(SUMMED | weights).gradient
    norms = {name: (first_pair(SUMMED | weights | {name: 0.0}).gradient - whole).norm() for name in weights}
    shares = {name: float(norm / sum(norms.values())) for name, norm in norms.items()}
    assert shares == pytest.approx({"attn_weight": 0.2, "rsc_weight": 0.1, "esd_weight": 0.7}, abs=2e-3)


def test_a_loss_that_is_off_gets_no_weight(patcher, first_pair):  # noqa: F811
    off = {"attn_weight": 0.0, "rsc_weight": 0.0}
    assert weights_of(patcher, first_pair(SHARES | off).plan) == {}
    assert weights_of(patcher, first_pair({}).plan) == {}


def test_a_typed_weight_is_taken_as_it_is():
    words = {"concept": "cat", "synonyms": ("kitty",), "irrelevant": ("dog",)}
    typed = run_config(words, "balanced", {"attn_weight": 0.3, "rsc_weight": 0.2})
    assert (typed.attn_weight, typed.attn_share, typed.rsc_weight, typed.rsc_share) == (0.3, 0, 0.2, 0)
    assert run_config(words, "balanced", SHARES | {"attn_weight": 0.3}).attn_share == 0.2


@pytest.mark.parametrize("change", [{"attn_share": -0.1}, {"attn_share": 0.6, "rsc_share": 0.4}])
def test_shares_that_leave_nothing_are_refused(patcher, clip, config, change):
    with pytest.raises(ValueError, match="attn_share and rsc_share must be"):
        train_eraser(ComfyHost(patcher, clip), dataclasses.replace(config, **change))


BY_IMPORTANCE = {"importance_sampling": True, "on_policy_share": 0.5}
OWN_TIMES = {"own_times": True, "shared_points": True, "rsc_weight": 0.0}


@pytest.mark.parametrize("change", [SHARES, BY_IMPORTANCE, BY_IMPORTANCE | OWN_TIMES, {"own_times": True}])
def test_a_resumed_run_has_the_same_bits(patcher, clip, config, tmp_path, change):
    config = dataclasses.replace(config, steps=5, refresh_every=3, **change)
    whole = train_eraser(ComfyHost(patcher, clip), config)
    train_eraser(ComfyHost(patcher, clip), config, stop_at(2), tmp_path / "run")
    rest = train_eraser(ComfyHost(patcher, clip), config, run_dir=tmp_path / "run")
    assert all(torch.equal(rest.lora[k], whole.lora[k]) for k in whole.lora)
    assert (rest.config.attn_weight, rest.losses) == (whole.config.attn_weight, whole.losses)
    assert (whole.config.attn_weight != config.attn_weight) == ("attn_share" in change)
