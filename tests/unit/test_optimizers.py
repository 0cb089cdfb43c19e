"""Optimisers by name, and the learning rate over a run."""

from types import SimpleNamespace

import pytest
import torch

from eraseanything_core import optimizers


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: name == "torch")
    assert optimizers.installed() == ["adamw"]
    with pytest.raises(ValueError, match="'prodigy' needs the library prodigyopt"):
        optimizers.new_optimizer("prodigy", [torch.zeros(1)], 1.0, 0.0)


@pytest.mark.parametrize("name", optimizers.installed())
def test_each_optimiser_goes_downhill(name):
    p = torch.nn.Parameter(torch.full((64, 64), 2.0))
    optimizer = optimizers.new_optimizer(name, [p], 1.0 if name == "prodigy" else 0.05, 0.0)
    for _ in range(60):
        optimizer.zero_grad()
        p.pow(2).sum().backward()
        optimizer.step()
    assert p.abs().mean() < 1.5


def test_weight_decay():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizers.new_optimizer("adamw", [p], 0.1, 0.5)
    p.sum().mul(0).backward()
    optimizer.step()
    assert torch.allclose(p, torch.full((3,), 0.95))


def test_the_rate_rises_and_falls():
    rates = [optimizers.rate_factor(step, 12, "linear", 2) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(0.1)
    assert [optimizers.rate_factor(s, 12, "constant", 0) for s in (0, 11)] == [1.0, 1.0]
    assert optimizers.rate_factor(6, 12, "cosine", 0) == pytest.approx(0.5)


def test_the_rate_is_set_on_every_group():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=9.0)
    config = SimpleNamespace(steps=10, lr_schedule="linear", warmup=0)
    optimizers.set_rate(optimizer, 0.2, 5, config)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
