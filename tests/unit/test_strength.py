import pytest
import torch

from eraseanything_core.compose.adapter import Dial
from eraseanything_core.strength import FROM_BARE, HEADER, TIMES, Curve, Seed, StrengthConfig, curve, flip, measure


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
    """A margin that hardly falls, drops through 0 at 0.6347 and hardly falls again."""
    asked = []

    def drops(scale):
        asked.append(scale)
        return 0.5 - (0.1 * scale if scale < 0.6347 else 0.9 + 0.1 * scale)

    assert flip(drops, 5) == pytest.approx(0.6347, abs=1 / 32) and asked[:2] == [0, 1] and len(asked) == 7
    assert flip(lambda scale: 0.3 - 0.7 * scale, 5) == pytest.approx(3 / 7)
    assert flip(lambda scale: 0.25 - scale**2, 5) == pytest.approx(0.5, abs=1e-3)


def test_an_image_that_never_showed_it_or_never_loses_it_has_no_flip():
    assert flip(lambda scale: -0.1 - scale, 5) is None and flip(lambda scale: 0.4 - 0.3 * scale, 5) is None


class Painter:
    """A seam whose image is constant, its context less the dial, and whose prompts expect their own context."""

    device, mu, channels, downscale = "cpu", 1.15, 1, 8

    def __init__(self, dial):
        self.dial, self.module = dial, torch.nn.Module()

    def cond(self, context, pooled, guidance):
        return context, guidance

    def trajectory(self, cond, noise, sigmas):
        yield torch.full_like(noise, float(cond[0][0]) - self.dial.scale), None

    def velocity(self, x_t, sigma, cond, adapters):
        assert self.dial.scale == 0 and not adapters and cond[1] == 1.0, "the frozen model reads, without guidance"
        assert len(x_t) == len(sigma) == len(cond[0]) == len(TIMES)
        # (x_t - image) / t is noise - image where the image is what was expected
        return (x_t - cond[0][:, None, None, None]) / sigma[:, None, None, None]


def seed_of(*contexts):
    dial, prompts = Dial(), [(torch.tensor([c]), torch.zeros(1, 1)) for c in contexts]
    config = StrengthConfig(width=32, height=32)
    return Seed(Painter(dial), dial, prompts, config, torch.Generator().manual_seed(0))


def test_without_rivals_an_image_is_lost_two_fifths_of_the_way_from_the_bare_prompt():
    seed = seed_of(2.0, 1.0)
    assert [seed.margin(s) for s in (0.0, 0.5, 1.0)] == pytest.approx([1 - FROM_BARE, 0.5 - FROM_BARE, -FROM_BARE])
    assert flip(seed.margin, 5) == pytest.approx(1 - FROM_BARE)


def test_a_rival_wins_where_it_explains_the_image_better():
    seed = seed_of(2.0, -3.0, 1.4, 7.0, 9.0)
    assert [float(context[0]) for context, _ in seed.rivals] == pytest.approx([1.4, 7.0]), (
        "nearest to the full eraser's"
    )
    assert flip(seed.margin, 5) == pytest.approx(0.3), "half-way from 2 to 1.4"


def test_an_eraser_that_loses_nothing_has_no_dial():
    prompts = [[(torch.tensor([c]), torch.zeros(1, 1)) for c in (9.0, 0.0)]] * 3
    with pytest.raises(ValueError, match="none of 3 images shows the concept without the LoRA and loses it"):
        measure(Painter(Dial(0.0)), {}, prompts, StrengthConfig(width=32, height=32))
