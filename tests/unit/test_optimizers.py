"""Optimisers by name, and the learning rate over a run."""

from types import SimpleNamespace

import pytest
import torch

from eraseanything_core.training import optimizers


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: name == "torch")
    assert optimizers.installed() == ["adamw"]
    with pytest.raises(ValueError, match="'prodigy' needs the library prodigyopt"):
        optimizers.new_optimizer("prodigy", [torch.zeros(1)], 1.0, 0.0)


def descended(name, rate, steps=60):
    """A matrix of twos after some steps towards zero, and its optimiser."""
    p = torch.nn.Parameter(torch.full((64, 64), 2.0))
    optimizer = optimizers.new_optimizer(name, [p], rate, 0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        p.pow(2).sum().backward()
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("name", optimizers.LIBRARIES)
def test_each_optimiser_goes_downhill(name):
    """And is the one of its library; requirements-test.txt installs all of them."""
    p, optimizer = descended(name, 1.0 if name == "prodigy" else 0.05)
    kind = type(optimizer)
    assert p.abs().mean() < 1.5 and kind.__module__.split(".")[0] == optimizers.LIBRARIES[name]
    assert kind.__name__ == {"adamw": "AdamW", "adamw8bit": "AdamW8bit", "prodigy": "Prodigy"}[name]


def test_eight_bits_are_eight_bits():
    """Both moments in a byte a weight, and the walk is that of AdamW but for the rounding."""
    (p, optimizer), (exact, _) = descended("adamw8bit", 0.05), descended("adamw", 0.05)
    state = optimizer.state[p]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8 and state["state1"].numel() == p.numel()
    assert (p - exact).abs().max() < 0.05


def test_prodigy_finds_its_own_step():
    """Its rate is a factor: at 1 it sets out with steps of a millionth, and they grow."""
    early, late = (descended("prodigy", 1.0, steps)[1].param_groups[0]["d"] for steps in (1, 60))
    assert early < 1e-5 and late > 1e3 * early


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
    config = SimpleNamespace(steps=10, lr_schedule="linear", warmup_steps=0)
    optimizers.set_rate(optimizer, 0.2, 5, config)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
