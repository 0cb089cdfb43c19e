"""Whole runs of the methods that a user can choose, on a toy: what they cost, erase, keep and refuse."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from eraseanything_core.erasers import registry
from eraseanything_core.training import trainer
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.presets import run_config
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from tests.unit.eraser_cases import BASE, config_of, nearness, trained
from tests.unit.toy_model import ToyModel, ToyText

pytestmark = pytest.mark.usefixtures("double_precision")


def counted(name, **settings):
    """Sequences of one step of the preset `balanced`, with a gradient and without, over the first twenty."""
    words = {field: BASE[field] for field in ("concept", "irrelevant", "templates", "retain", "neutral")}
    plain = {"width": 16, "height": 16, "attn_weight": 0.0, "steps": 20, "refresh_every": 20, "monitor_every": 0}
    off = {"stop_when_gone": False, "adapt_rate": False}
    config = run_config(words, "balanced", registry.settings_of(name) | plain | off | settings)
    model, plan, method = ToyModel(), prepare(config, ToyText()), registry.method_of(config)
    lora = model.attach(config.targets, config.rank, torch.Generator())
    optimizers = [lora_optimizer(lora, config.lr_low, config) for _ in range(2)]
    epoch = TrajectoryCache(model, plan).epoch(0)
    model.asked.clear()
    for step in range(config.steps):
        trainer.train_pair(model, plan, epoch, step, lora, optimizers, method=method)
    return tuple(sum(rows for rows, _, grad in model.asked if grad is on) / config.steps for on in (True, False))


def test_the_page_has_the_counted_costs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "erasers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    told = {label: (float(on), float(off)) for label, on, off in rows}
    assert told == {method.label: counted(name) for name, method in registry.METHODS.items()}
    plain, meta = counted("esd", retain_weight=1.0), counted("esd", retain_weight=1.0, meta_weight=1.0)
    assert "four more with a gradient, and none without" in page
    assert (meta[0] - plain[0], meta[1] - plain[1]) == (4, 0)


# The toy's velocity does not depend on its attention; see tests/unit/test_mace_method.py.
BY_VELOCITY = [name for name in registry.METHODS if name != "mace"]


@pytest.mark.parametrize("name", BY_VELOCITY)
def test_it_erases_the_toys_concept(name):
    """From 1, the original model, to under a half. tests/comfy/test_erasers.py asks TinyFlux for pictures."""
    config = config_of(name, steps=80, refresh_every=20, lr_low=0.03, rank=4, cached_trajectories=6)
    model, plan = ToyModel(), prepare(config, ToyText())
    trainer.train(model, plan, method=registry.method_of(config))
    reached = nearness(model, plan)
    model.lora.scale = 0.0
    assert nearness(model, plan) == pytest.approx(1.0)
    assert reached < 0.5


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(name, tmp_path):
    """What a method remembers is saved with the optimizer."""
    torch.set_default_dtype(torch.float32)  # as a state is saved
    config = config_of(name, steps=5, save_every=1)
    whole = trained(config)

    def stop(done, losses):
        if done == 3:
            raise KeyboardInterrupt

    first = trained(config, progress=stop, run_dir=tmp_path / "run")
    assert first.interrupted and first.steps == 3
    second = trained(config, run_dir=tmp_path / "run")
    assert second.losses == whole.losses
    assert all(torch.equal(second.lora[key], whole.lora[key]) for key in whole.lora)


@pytest.mark.parametrize(
    "name, settings, message",
    (
        ("gem", {"attn_weight": 0.1}, "GEM has no loss on attention: set attn_weight to 0"),
        ("slider", {"divergence": "alpha"}, "has a loss of its own: set divergence to squared"),
        ("eap", {"retain_weight": 0.0}, "EAP needs prompts that must stay: set retain_weight above 0"),
        ("eap", {"on_policy_share": 0.5}, "EAP needs trajectories of the original model alone: set on_policy_share"),
        ("esd", {"walk": "neutral"}, "ESD needs walk to be concept"),
        ("magic", {}, "there is no method 'magic'; there are eraseanything, "),
        ("esd", {"method_settings": (("size", 1),)}, "esd has no setting 'size'; it has variant"),
    ),
    ids=str,
)
def test_settings_that_a_method_cannot_work_with_are_refused(name, settings, message):
    base = config_of(name) if name in registry.METHODS else EraseConfig("star", method=name)
    with pytest.raises(ValueError, match=message):
        registry.method_of(dataclasses.replace(base, **settings))


def test_a_run_is_never_trained_by_another_method():
    with pytest.raises(AssertionError, match="the settings are for esd"):
        trainer.train(ToyModel(), prepare(config_of("esd"), ToyText()))
