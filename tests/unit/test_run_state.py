"""A run whose device has no room left for the copy of a whole pair."""

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core.training import run_state
from eraseanything_core.training.config import EraseConfig
from eraseanything_core.training.optimizers import lora_optimizer
from eraseanything_core.training.run_state import RunState
from tests.unit.toy_model import ToyModel

CONFIG = EraseConfig("cat")


def new_run(folder):
    lora = ToyModel().attach("paper", 2, torch.Generator().manual_seed(0))
    return RunState(CONFIG, lora, [lora_optimizer(lora, 0.1, CONFIG) for _ in range(2)], folder)


def pair(run, number):
    for optimizer in run.optimizers:
        optimizer.zero_grad()
        sum(parameter.square().sum() for parameter in run.lora.parameters()).backward()
        optimizer.step()
    run.add_pair(number, {"esd": torch.tensor(0.5)})


def out_of_memory(*_):
    raise RuntimeError("out of memory")


def factors(run):
    return [parameter.detach().clone() for parameter in run.lora.parameters()]


def test_a_pair_that_cannot_be_copied_is_whole_and_kept(tmp_path, monkeypatch):
    """The older copy has made room by then, so there is nothing to go back to, and nothing that has to be undone."""
    run = new_run(tmp_path / "run")
    pair(run, 0)
    monkeypatch.setattr(run_state, "tree_map_only", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        pair(run, 1)
    monkeypatch.undo()
    whole = factors(run)
    run.restore_pair()
    run.save()
    again = new_run(tmp_path / "run")
    assert again.steps_done == 2
    assert all(torch.equal(one, other) for one, other in zip(whole, factors(again), strict=True))


def test_a_pair_that_was_interrupted_is_undone(tmp_path):
    run = new_run(None)
    pair(run, 0)
    whole = factors(run)
    run.optimizers[0].step()
    assert not all(torch.equal(one, other) for one, other in zip(whole, factors(run), strict=True))
    run.restore_pair()
    assert all(torch.equal(one, other) for one, other in zip(whole, factors(run), strict=True))
