"""ComfyUI's NAG as a row of lab/measurements/without_training.py: it acts, and at scale 1 it is the model as it is."""

import pytest

from eraseanything_core.tinyflux import GUIDANCE
from lab.measurements import without_training
from lab.tinyflux.pipeline import Pipeline, flux

ASKED = (["a red star", "a blue house"], [1, 2], GUIDANCE, 2)  # prompts, seeds, guidance, steps


@pytest.fixture(scope="module")
def base():
    return Pipeline(flux())


def moved(base):
    """Mean change of each latent, whose own mean size is about 0.6."""
    pipeline, _ = without_training.drawn_by("NAG", base, "star", without_training.SAMPLING)
    return (pipeline.latents(*ASKED) - base.latents(*ASKED)).abs().mean((1, 2, 3))


def test_it_acts(base):
    assert bool((moved(base) > 0.05).all())


def test_a_scale_of_1_changes_nothing(base, monkeypatch):
    """But for the rounding of bfloat16 on ComfyUI's own forward."""
    monkeypatch.setitem(without_training.NAG, "nag_scale", 1.0)
    assert bool((moved(base) < 0.02).all())
