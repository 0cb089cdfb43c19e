"""One step of an optimiser: clipped, over graphs that are alive one after the other; losses read late."""

import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.optimizers import optimizer_step
from eraseanything_core.training.run_state import READ_EVERY, RunState

CONFIG = EraseConfig("cat", max_grad_norm=0.5, attn_weight=0.0, retain_weight=0.0, rsc_weight=0.0)


@pytest.fixture
def lora():
    return torch.nn.ParameterList([torch.ones(3), torch.ones(2)])


def test_the_step_is_clipped(lora):
    optimizer_step(torch.optim.SGD(lora, lr=1.0), lora, sum(100 * p.sum() for p in lora), CONFIG)
    moved = torch.cat([1 - p.detach() for p in lora])
    assert moved.norm() == pytest.approx(0.5, abs=1e-4)


def test_graphs_one_after_the_other_are_their_sum(lora):
    """And the second is made only when the first has been backpropagated."""
    order, config = [], types.SimpleNamespace(max_grad_norm=1e9)

    def graphs():
        for p in lora:
            order.append([q.grad is not None for q in lora])
            yield p.square().sum()

    optimizer_step(torch.optim.SGD(lora, lr=0.25), lora, graphs(), config)
    assert order == [[False, False], [True, False]]
    assert torch.allclose(torch.cat(list(lora)), torch.full((5,), 0.5))


def test_a_level_without_losses_moves_nothing(lora):
    optimizer_step(torch.optim.AdamW(lora, lr=1.0, weight_decay=0.5), lora, iter(()), CONFIG)
    assert all((p == 1).all() for p in lora)


def test_the_copy_of_a_pair_takes_no_flops_and_no_look_at_the_device():
    """On tensors without data, where a look raises."""
    lora = torch.nn.ParameterList([torch.ones(3, 4, device="meta"), torch.ones(2, device="meta")])
    both = [torch.optim.AdamW(lora, lr=1.0) for _ in range(2)]
    run = RunState(CONFIG, lora, both, None)
    for p in lora:
        p.grad = torch.ones_like(p)
    both[0].step()
    with FlopCounterMode(display=False) as flops:
        run.copy_pair()
    assert flops.get_total_flops() == 0
    masters, (lower, upper) = run.last_pair
    assert [m.shape for m in masters] == [p.shape for p in lora] and not upper["state"]
    assert {k: v.shape for k, v in lower["state"][0].items()} == {"step": (), "exp_avg": (3, 4), "exp_avg_sq": (3, 4)}
    assert all(v is not both[0].state[lora[0]][k] for k, v in lower["state"][0].items())


def test_losses_are_looked_at_now_and_then_and_all_are_kept(lora):
    run = RunState(CONFIG, lora, [torch.optim.SGD(lora, lr=1.0)], None)
    for step in range(READ_EVERY + 3):
        run.add_pair(step, {"esd": torch.tensor(float(step))})
    assert run.steps_done == READ_EVERY + 3 and len(run.losses["esd"]) == READ_EVERY
    run.read_losses()
    assert run.losses["esd"] == [float(step) for step in range(READ_EVERY + 3)]


def test_a_loss_that_is_no_number_is_named_with_its_step(lora):
    run = RunState(CONFIG, lora, [torch.optim.SGD(lora, lr=1.0)], None)
    run.add_pair(0, {"esd": torch.tensor(1.0)})
    run.add_pair(1, {"esd": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="the esd loss became nan at step 2"):
        run.read_losses()
