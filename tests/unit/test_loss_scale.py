"""Loss scaling: small gradients survive float16, and a step that overflows moves nothing."""

import types

import pytest
import torch

from eraseanything_core.training import loss_scale
from eraseanything_core.training.optimizers import optimizer_step

UNCLIPPED = types.SimpleNamespace(max_grad_norm=1e9)


@pytest.fixture
def lora():
    return torch.nn.ParameterList([torch.ones(4)])


def half_loss(lora, factor):
    """A sum through float16, as in a transformer's last layer; its gradient is `factor` for every weight."""
    return lora[0].half().sum().float() * factor


@pytest.fixture
def scaled(lora):
    optimizer = torch.optim.SGD(lora, lr=1.0)
    loss_scale.start([optimizer], torch.float16)
    return optimizer


def test_a_gradient_below_the_smallest_half_arrives(lora, scaled):
    """Without a scale it is rounded to 0."""
    half_loss(lora, 1e-8).backward()
    assert not lora[0].grad.any()
    optimizer_step(scaled, lora, half_loss(lora, 1e-8), UNCLIPPED)
    assert lora[0].grad == pytest.approx(1e-8, rel=1e-3)


def test_the_bound_of_the_norm_is_that_of_true_gradients(lora, scaled):
    optimizer_step(scaled, lora, half_loss(lora, 0.125), types.SimpleNamespace(max_grad_norm=1.0))
    assert torch.equal(lora[0].detach(), torch.full((4,), 0.875)), "a norm of 0.25 is not clipped"


def test_a_step_that_overflows_moves_nothing_and_halves_the_scale(lora):
    """65,504 is the largest half."""
    optimizer = torch.optim.AdamW(lora, lr=1.0)
    loss_scale.start([optimizer], torch.float16)
    optimizer_step(optimizer, lora, half_loss(lora, 7.0), UNCLIPPED)
    assert torch.equal(lora[0].detach(), torch.ones(4)) and not optimizer.state
    assert loss_scale.scale_of(optimizer) == loss_scale.START / 2
    assert loss_scale.skipped_note([optimizer]) == "1 updates were skipped, because their gradients overflowed in fp16"
    optimizer_step(optimizer, lora, half_loss(lora, 7.0), UNCLIPPED)
    assert not torch.equal(lora[0].detach(), torch.ones(4))
    assert lora[0].grad == pytest.approx(7.0), "what is left in the gradients is the true one"


def test_a_step_without_clipping_is_scaled_as_well(lora):
    optimizer = torch.optim.SGD(lora, lr=1.0)
    loss_scale.start([optimizer], torch.float16)
    loss_scale.scaled_step(optimizer, half_loss(lora, 1e-8))
    assert lora[0].grad == pytest.approx(1e-8, rel=1e-3)
    before = lora[0].detach().clone()
    loss_scale.scaled_step(optimizer, half_loss(lora, 7.0))
    assert torch.equal(lora[0].detach(), before), "it has overflowed"
    plain = torch.optim.SGD(lora, lr=1.0)
    loss_scale.scaled_step(plain, 2 * lora[0].sum())
    assert torch.equal(lora[0].detach(), before - 2)


def test_the_scale_grows_slowly(lora, scaled):
    for _ in range(loss_scale.GROW_AFTER - 1):
        optimizer_step(scaled, lora, half_loss(lora, 1e-6), UNCLIPPED)
    assert loss_scale.scale_of(scaled) == loss_scale.START
    optimizer_step(scaled, lora, half_loss(lora, 1e-6), UNCLIPPED)
    assert loss_scale.scale_of(scaled) == 2 * loss_scale.START
    assert loss_scale.skipped_note([scaled]) == ""


def test_gradients_that_are_never_finite_end_the_run(lora, scaled):
    with pytest.raises(FloatingPointError, match="not finite in fp16: set dtype to bf16 or fp32"):
        for _ in range(20):
            optimizer_step(scaled, lora, half_loss(lora, float("nan")), UNCLIPPED)
    assert torch.equal(lora[0].detach(), torch.ones(4))


def test_the_scale_is_saved_with_its_optimizer(lora, scaled):
    optimizer_step(scaled, lora, half_loss(lora, 7.0), UNCLIPPED)
    other = torch.optim.SGD(lora, lr=1.0)
    other.load_state_dict(scaled.state_dict())
    loss_scale.start([other], torch.float16)
    assert loss_scale.scale_of(other) == loss_scale.START / 2
    assert loss_scale.skipped_note([other]) == loss_scale.skipped_note([scaled]) != ""


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
def test_other_types_are_not_scaled(lora, dtype):
    optimizer = torch.optim.SGD(lora, lr=1.0)
    loss_scale.start([optimizer], dtype)
    assert loss_scale.scale_of(optimizer) == 1 and loss_scale.SCALE not in optimizer.param_groups[0]
