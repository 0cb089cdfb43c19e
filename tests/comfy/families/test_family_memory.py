"""The estimate for any family, held against what was measured for FLUX.1, and asked for on every family."""

import pytest
import torch

from eraseanything_core.comfy_bridge.family_memory import count_activations
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.memory import KEPT_PER_BLOCK, RECOMPUTED_BLOCK
from lab.bench.true_size import DEV, true_flux
from tests.comfy.columns import new_family
from tests.comfy.families.small import FAMILIES


def test_flux_1_keeps_what_was_measured():
    counted = count_activations(true_flux().module, tokens=1, batch=1, itemsize=2)
    blocks = DEV["depth"] + DEV["depth_single_blocks"]
    unit = 2 * DEV["hidden_size"]
    assert counted.kept == pytest.approx(KEPT_PER_BLOCK * blocks * unit, rel=0.06)
    assert counted.recomputed == pytest.approx((blocks + RECOMPUTED_BLOCK) * unit, rel=0.06)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_an_estimate(name):
    patcher = new_family(name).model
    host = ComfyHost(patcher, None)
    small, large = (host.estimate(77, side, side, 1, 0, torch.float32) for side in (256, 1024))
    assert 0 < small.activations < large.activations and small.forward <= large.forward
    batch = host.estimate(77, 256, 256, 4, 0, torch.float32)
    assert batch.activations > 2 * small.activations
