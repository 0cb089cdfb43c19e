from dataclasses import replace

import pytest
import torch

from eraseanything_core.lora import factors
from eraseanything_core.lora.factors import Factors
from eraseanything_core.lora.strength import (
    EARLIER_READER,
    JudgeReader,
    LatentSampler,
    StrengthConfig,
    StrengthCurve,
    curve_from_intervals,
    measure_curve,
    needs_curve,
)


def test_the_dial_is_the_share_of_seeds_that_flipped():
    measured = curve_from_intervals([0.375, 0.5, 0.5, 0.75], [0.5, 0.625, 0.625, 0.875])
    assert measured.scale == (0.0, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    assert measured.effect == (0.0, 0.125, 0.25, 0.75, 0.75, 1.0, 1.0)
    assert measured.scale_at(0) == 0 and measured.scale_at(1) == 1
    assert measured.scale_at(0.5) == pytest.approx(0.5625), "two flip between 0.5 and 0.625: one before its middle"
    assert measured.scale_at(0.2) == pytest.approx(0.45) and measured.scale_at(0.99) == pytest.approx(0.87)
    scales = [measured.scale_at(d / 50) for d in range(51)]
    assert scales == sorted(scales)


def test_past_the_ends():
    measured = curve_from_intervals([0.375], [0.625])
    assert measured.scale_at(1.7) == pytest.approx(1.7) and measured.scale_at(-1.7) == pytest.approx(-1.7)
    assert measured.scale_at(-0.75) == pytest.approx(-0.5), "below 0 the sign turns"


def test_seeds_that_flip_together_leave_no_step_out():
    measured = curve_from_intervals([0.5] * 10, [0.5625] * 10)
    assert [measured.scale_at(d) for d in (0.05, 0.525, 0.999)] == pytest.approx([0.5, 0.53125, 0.5625], abs=1e-3)


def test_it_goes_through_a_file():
    measured = replace(curve_from_intervals([0.5, 0.25], [0.75, 0.5], "NudeNet (exposed)"), prompts="3a1f")
    assert StrengthCurve.from_json(measured.to_json()) == measured


CURVES = (
    "{}",
    "[]",
    "null",
    "[" * 100_000,
    '{"scale": 1, "effect": 2}',
    '{"scale": ["x"], "effect": ["y"]}',
    '{"scale": [], "effect": []}',
    '{"scale": [0, NaN, 1], "effect": [0, 0.5, 1]}',
    '{"scale": [0, 0.5, 1], "effect": [0, Infinity, 1]}',
    '{"scale": [0, 1], "effect": [0, 0.5, 1]}',
    '{"scale": [0, 0.9, 0.4, 1], "effect": [0, 0.2, 0.5, 1]}',
)


@pytest.mark.parametrize("text", CURVES, ids=range(len(CURVES)))
def test_a_curve_that_is_none_is_named(text):
    with pytest.raises(ValueError, match="^the header of x holds (no strength curve|a strength curve that)") as error:
        StrengthCurve.from_json(text, "the header of x")
    assert "\n" not in str(error.value)


def test_a_header_of_an_earlier_version_names_no_reader():
    assert StrengthCurve.from_json('{"scale": [0, 0.4, 1], "effect": [0, 0.5, 1]}').reader == EARLIER_READER


FLIPS = torch.tensor([0.2, 0.55, 0.9, 0.35])


def painted(scale):
    """Latents [4, 1, 1, 2] that jump to another place at their own scale, and drift a little before and after."""
    place = torch.where(scale > FLIPS, 3.0, 0.0) + 0.4 * scale
    return torch.stack([place, torch.ones(4)], dim=1)[:, None, None]


def far(x):
    """Whether latents of `painted` have not jumped yet."""
    return x[:, 0, 0, 0] < 1


def test_the_flips_are_found():
    measured = measure_curve(painted, JudgeReader("a judge", far), 4, halvings=8)
    for i, flip in enumerate(sorted(FLIPS.tolist())):
        assert measured.scale_at((i + 0.5) / 4) == pytest.approx(flip, abs=2**-8)
    assert measured.reader == "a judge"


def test_each_halving_paints_every_seed_once_at_its_own_scale():
    asked = []
    measure_curve(
        lambda scale: asked.append(scale.tolist()) or painted(scale), JudgeReader("a judge", far), 4, halvings=2
    )
    assert asked == [[0.0] * 4, [1.0] * 4, [0.5] * 4, [0.25, 0.75, 0.75, 0.25]]


def test_a_judge_reads_instead():
    """It sees the concept up to another place than the middle, and never in the last seed."""

    def shows(x):
        return (x[:, 0, 0, 0] < 0.3) & torch.tensor([True, True, True, False])

    measured = measure_curve(painted, JudgeReader("a judge", shows), 4, halvings=8)
    flips = [measured.scale_at((i + 0.5) / 3) for i in range(3)]
    assert flips == pytest.approx([0.2, 0.55, 0.75], abs=2**-8), "0.4 s < 0.3 until s = 0.75"
    assert measured.reader == "a judge"


def test_an_eraser_that_loses_nothing_has_no_dial():
    reader = JudgeReader("a judge", lambda x: torch.ones(len(x), dtype=torch.bool))
    with pytest.raises(ValueError, match="by a judge, none of 4 images shows the concept without the LoRA"):
        measure_curve(lambda scale: torch.ones(4, 1), reader, 4, halvings=2)


class Still:
    """A seam whose images are what their context and the dial say, whatever the noise."""

    device, channels, downscale = "cpu", 1, 8

    def __init__(self):
        self.module, self.batches = torch.nn.Linear(1, 1, bias=False), []
        self.module.weight.data.zero_()

    def sigmas(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def conds(self, prompts, guidance):
        return torch.cat([context for context, _ in prompts]), guidance

    def trajectory(self, cond, noise, sigmas):
        self.batches.append((len(noise), cond[1], len(sigmas) - 1))
        yield noise, None
        yield (cond[0] + self.module(torch.ones(len(noise), 1, 1)))[..., None].expand_as(noise), None


def test_images_take_prompts_in_turn_and_are_painted_in_batches_each_at_its_own_scale(monkeypatch):
    monkeypatch.setattr(factors, "module_slice", lambda key, width: ("", 0))
    model, eraser = Still(), {"x": Factors(torch.full((1, 1), 2.0), torch.ones(1, 1))}
    config = StrengthConfig(steps=3, batch_size=2, width=16, height=16, guidance=2.5)
    prompts = [(torch.full((1, 1, 1), float(i)), torch.zeros(1, 1)) for i in range(2)]
    latents = LatentSampler(prompts, config).sample(model, eraser, torch.tensor([0.0, 0.25, 1.0]))
    assert latents.shape == (3, 1, 2, 2) and latents[:, 0, 0, 0].tolist() == [0.0, 1.5, 2.0]
    assert model.batches == [(2, 2.5, 3), (1, 2.5, 3)]
    assert not model.module._forward_hooks, "the model is as it was"


class Walking(Still):
    """It has a velocity at every point but the last, as the real one."""

    def trajectory(self, cond, noise, sigmas):
        for _ in sigmas[:-1]:
            yield noise, noise
        yield noise, None


def test_every_forward_of_an_image_is_reported(monkeypatch):
    """Their number is what the user was told before."""
    monkeypatch.setattr(factors, "module_slice", lambda key, width: ("", 0))
    config, reported = StrengthConfig(images=3, halvings=2, steps=5, batch_size=2, width=16, height=16), []
    eraser = {"x": Factors(torch.ones(1, 1), torch.ones(1, 1))}
    sampler = LatentSampler([(torch.zeros(1, 1, 1), torch.zeros(1, 1))], config, reported.append)
    for _ in range(2 + config.halvings):
        sampler.sample(Walking(), eraser, torch.zeros(3))
    assert reported[:6] == [2, 4, 6, 8, 10, 11]
    assert reported[-1] == config.forwards == 60
    assert StrengthConfig().forwards == 1680


@pytest.mark.parametrize("strength, needed", ((0, False), (0.01, True), (-0.5, True), (1, False), (-2.5, False)))
def test_only_a_strength_between_0_and_1_is_the_erasers_own(strength, needed):
    assert needs_curve(strength) == needed
