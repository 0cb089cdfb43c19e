"""How much of a change is left in weights that are coarser than the change."""

import pytest
import torch

from eraseanything_core.lora.factors import Factors, RowFactors
from eraseanything_core.lora.kept_change import KeptChange, kept_change

UP, DOWN = torch.full((4, 1), 0.5), torch.full((1, 6), 0.25)


def change_of(weight, scale, rounded=None):
    """What is left of `scale` * UP @ DOWN in rows 2 to 6 of a weight."""
    changed = weight.clone().float()
    changed[2:6] += (scale * UP) @ DOWN
    rounded = changed.to(weight.dtype) if rounded is None else rounded
    return kept_change(weight, rounded, [RowFactors(2, Factors(UP, DOWN))], scale)


def test_float32_keeps_all_of_it():
    change = change_of(torch.ones(8, 6), 0.01)
    assert (change.entries, change.changed) == (24, 24)
    assert change.kept == pytest.approx(1, abs=1e-3) and change.noise < 1e-3 and not change.is_lost


def test_bfloat16_rounds_a_small_one_away():
    """A step of bfloat16 at 1 is 1/128 above and 1/256 below."""
    change = change_of(torch.ones(8, 6, dtype=torch.bfloat16), 0.01)
    assert change.changed == 0 and change.kept == 0 and change.noise == 1 and change.is_lost
    assert not change_of(torch.ones(8, 6, dtype=torch.bfloat16), 0.5).is_lost


def test_noise_larger_than_the_change_is_told():
    """Rounded at random to eight bits the change is kept on average, in a few entries that jump far."""
    weight = torch.ones(8, 6)
    rounded = weight.clone()
    rounded[2, :] += 4 * 0.125  # a quarter of the rows takes the change of all
    change = change_of(weight, 1.0, rounded)
    assert change.changed_share == 0.25 and change.kept == pytest.approx(1)
    assert change.noise == pytest.approx(3**0.5) and change.is_lost


def test_the_sum_of_two_weights():
    one, other = change_of(torch.ones(8, 6), 0.01), change_of(torch.ones(8, 6, dtype=torch.bfloat16), 0.01)
    total = KeptChange() + one + other
    assert total.changed_share == 0.5 and total.kept == pytest.approx(0.5, abs=1e-3)


def test_a_change_of_nothing_is_not_lost():
    change = change_of(torch.ones(8, 6), 0.0)
    assert change.kept == 1 and change.noise == 0 and not change.is_lost
