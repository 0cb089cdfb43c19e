import pytest
import torch

from eraseanything_core.compose.adapter import Dial
from eraseanything_core.strength import HEADER, LOST, TIMES, Curve, Seed, StrengthConfig, curve, flip


def test_the_dial_is_the_share_of_seeds_that_flipped():
    measured = curve([0.8, 0.4, 0.6, 0.7])
    assert measured.scale_at(0) == 0 and measured.scale_at(1) == 1
    assert measured.scale_at(1 / 8) == pytest.approx(0.4) and measured.scale_at(3 / 8) == pytest.approx(0.6)
    assert measured.scale_at(0.5) == pytest.approx(0.65), "half of the seeds flipped below it"
    scales = [measured.scale_at(d / 50) for d in range(51)]
    assert scales == sorted(scales)


def test_past_the_ends():
    measured = curve([0.5])
    assert measured.scale_at(1.7) == pytest.approx(1.7) and measured.scale_at(-1.7) == pytest.approx(-1.7)
    assert measured.scale_at(-0.25) == pytest.approx(-0.25), "below 0 the sign turns"


def test_seeds_that_flip_together_leave_no_step_out():
    measured = curve([0.5, 0.5, 0.5])
    assert [measured.scale_at(d) for d in (0.2, 0.5, 0.8)] == pytest.approx([0.5] * 3)


def test_it_goes_through_a_header():
    measured = curve([0.5, 0.25])
    assert Curve.of({HEADER: measured.text()}) == measured and Curve.of({}) is None


def test_the_flip_is_found():
    """A margin that hardly falls, drops at 0.6347 and hardly falls again."""
    asked = []

    def drops(scale):
        asked.append(scale)
        return 5.0 - (0.1 * scale if scale < 0.6347 else 0.9 + 0.1 * scale)

    assert flip(drops, 5) == pytest.approx(0.6347, abs=1 / 32) and asked[:2] == [0, 1] and len(asked) == 7
    assert flip(lambda scale: 3 - 7 * scale, 5) == pytest.approx(LOST)
    assert flip(lambda scale: scale**2, 5) == pytest.approx(LOST**0.5, abs=1e-3)
    with pytest.raises(ValueError, match="changes nothing"):
        flip(lambda scale: 1.0, 5)


class Painter:
    """A seam whose image is constant, its context less the dial, and whose prompts expect their own context."""

    device, mu, channels, downscale = "cpu", 1.15, 1, 8

    def __init__(self, dial):
        self.dial = dial

    def cond(self, context, pooled, guidance):
        return context, guidance

    def trajectory(self, cond, noise, sigmas):
        yield torch.full_like(noise, cond[0] - self.dial.scale), None

    def velocity(self, x_t, sigma, cond, adapters):
        assert self.dial.scale == 0 and not adapters and cond[1] == 1.0, "the frozen model reads, without guidance"
        return (x_t - cond[0]) / sigma  # (x_t - image) / t is noise - image where the image is what was expected


def test_the_margin_is_the_error_without_the_concept_less_the_error_with_it():
    config, dial = StrengthConfig(width=32, height=32), Dial()
    seed = Seed(Painter(dial), dial, (2.0, None), (0.0, None), config, torch.Generator().manual_seed(0))
    steep = sum(1 / t**2 for t in TIMES)
    assert seed.margin(0.0) == pytest.approx(4 * steep, rel=1e-4), "the image is what the concept's prompt expects"
    assert seed.margin(1.0) == pytest.approx(0, abs=1e-4), "as far from one as from the other"
    assert seed.margin(2.0) == pytest.approx(-4 * steep, rel=1e-4)
    assert flip(seed.margin, 5) == pytest.approx(0.5)
