"""The bench counts what the trainer does: bounds on a pair at Flux.1-dev's size, in shapes only."""

import torch
from comfy.ldm.flux.model import FluxParams

from eraseanything_core.flux.fit import activations, fitted
from scripts.bench.flops import TERA, pair_flops
from scripts.bench.memory import GIB, Live, peak_bytes
from scripts.bench.true_size import DEV, true_flux


def test_the_model_is_flux_dev():
    model = true_flux()
    assert sum(p.numel() for p in model.module.parameters()) == 11_901_408_320
    lora = model.attach("paper", 8, torch.Generator())
    assert sum(p.numel() for p in lora.parameters()) == 1_867_776


def test_a_pair_in_the_steady_state():
    """Below 97 TFLOP, and not below Algorithm 1's floor. There is no data here: a look at the device would raise."""
    assert 72.8 < pair_flops() / TERA < 97


def test_the_peak_of_a_pair_on_four_bit_weights():
    peak, weights = peak_bytes("q4", 512, 256, True)
    assert 6.2 < weights / GIB < 6.3 and weights < peak < 7.3 * GIB
    shape = FluxParams(**{k: v for k, v in DEV.items() if k != "image_model"})
    told = activations(shape, 1024 + 256, 1, 2, checkpoint=True, cast=2 * 3072 * 7 * 3072, masters=1_867_776)
    assert 0.95 < told / (peak - weights) < 1.1, "what the node estimates before it starts"


def test_what_is_chosen_for_what_is_free():
    """In GiB: weights 20; 6 with the blocks kept, 1 with them recomputed."""
    roomy, tight, small, none = (fitted(free, 20, 6, 1) for free in (30, 24, 15, 0))
    assert (roomy.checkpoint, roomy.offloaded) == (False, 0)
    assert (tight.checkpoint, tight.offloaded) == (True, 0)
    assert (small.checkpoint, small.offloaded) == (True, 6)
    assert none.offloaded == 20 and "may not fit" in str(none) and "may not fit" not in str(small)


def test_the_tracker_counts_what_is_alive():
    with Live() as live:
        a = torch.zeros(1024, device="meta")
        b = a.view(32, 32) + 1
        del a
        c = torch.zeros(100, device="meta")
    assert live.peak == 8192 and live.now == 4096 + 512
    del b, c
    assert live.now == 0
