"""The look at an eraser from elsewhere says what a training says of its own."""

import dataclasses

import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.training.gone_check import Erased, check_gone
from eraseanything_core.training.recipe import train_eraser


@pytest.fixture
def small(config):
    change = {"batch_size": 1, "retain_batch_size": 1, "monitor_every": 2}
    return dataclasses.replace(config, **change)


@pytest.fixture
def trained(patcher, clip, small):
    return train_eraser(ComfyHost(patcher, clip), dataclasses.replace(small, steps=2, lr_low=3e-2, lr_up=3e-2))


def test_it_agrees_with_the_trainings_own_look(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    said = []
    verdict = check_gone(host, Erased(host, trained.lora), small, said.append)
    ours = dataclasses.asdict(verdict)
    own = dataclasses.asdict(trained.verdict)
    assert ours == pytest.approx(own, rel=1e-3) and own["drift"] > 1e-4
    assert "looking at 6 pictures" in said[0]


def test_a_lora_at_strength_0_shows_everything(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    verdict = check_gone(host, Erased(host, trained.lora, 0.0), small, lambda message: None)
    assert verdict.shown == verdict.readable == 4 and verdict.drift < 1e-5 and not verdict.gone


def test_the_models_stay_as_they_are(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    before = {name: weight.clone() for name, weight in patcher.model.diffusion_model.state_dict().items()}
    check_gone(host, Erased(host, trained.lora), small, lambda message: None)
    after = patcher.model.diffusion_model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_lora_of_another_model_is_refused(patcher, clip, small):
    host = ComfyHost(patcher, clip)
    with pytest.raises(ValueError):
        check_gone(host, Erased(host, {"nonsense.lora_A.weight": torch.zeros(4, 4)}), small, lambda message: None)


def test_an_empty_concept_is_refused(patcher, clip, small):
    host = ComfyHost(patcher, clip)
    with pytest.raises(ValueError, match="concept"):
        check_gone(host, Erased(host, {}), dataclasses.replace(small, concept=" "), lambda message: None)


def test_a_broken_eraser_is_not_called_gone(patcher, clip, small, trained):
    host = ComfyHost(patcher, clip)
    broken = {name: torch.full_like(tensor, 1e30) for name, tensor in trained.lora.items()}
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        check_gone(host, Erased(host, broken), small, lambda message: None)
