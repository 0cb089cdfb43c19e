"""The dial without a judge, on a model whose picture of a prompt is one number."""

import json

import pytest
import torch

from eraseanything_core.lora import apply, factors
from eraseanything_core.lora.factors import Factors
from eraseanything_core.lora.strength import measure_curve
from eraseanything_core.training import gone_dial, plan
from eraseanything_core.training.gone import HeldOut
from eraseanything_core.training.gone_dial import GoneDial, dial_config, dial_forwards, own_sentences

CONCEPT, NEUTRAL = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0.0, 0.0, 0.0, 3.0])


class Numbers:
    """v(x_t, t) = (x_t - m) / t leads from any noise to m, which is what its prompt says plus its linear."""

    device = torch.device("cpu")
    noise_scale = 1.0

    def __init__(self):
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.module.weight.data.zero_()
        self.forwards = 0

    def velocity(self, x_t, sigma, cond, adapters):
        self.forwards += len(x_t)
        target = cond[:, None, None, None] + self.module(torch.ones(len(x_t), 1, 1))[..., None]
        return (x_t - target) / sigma[:, None, None, None]

    def trajectory(self, cond, noise, sigmas, adapters=False):
        x = noise
        for t, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            v = self.velocity(x, t.expand(len(x)), cond, adapters)
            yield x, v
            x = x + (after - t) * v
        yield x, None


@pytest.fixture
def dial(monkeypatch):
    """The LoRA takes 4 off every picture at scale 1."""
    monkeypatch.setattr(factors, "module_slice", lambda key, width: ("", 0))
    eraser = {"x": Factors(torch.full((1, 1), -4.0), torch.ones(1, 1))}
    concept, neutral = ((lambda model, rows, of=of: of[list(rows)]) for of in (CONCEPT, NEUTRAL))
    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model, reported = Numbers(), []
    held_out = HeldOut(concept, concept, neutral, noise, torch.linspace(1, 0, 9))
    made = GoneDial(model, held_out, eraser, reported.append)
    made.reported = reported
    return made


def test_each_picture_is_drawn_at_its_own_scale_and_the_original_reads_it(dial):
    scales = torch.tensor([0.0, 0.25, 0.5, 1.0])
    drawn = dial.sample(scales)
    assert torch.allclose(drawn[:, 0, 0, 0], CONCEPT - 4 * scales, atol=1e-4)
    assert dial.lost(drawn)[:3].tolist() == [False, True, True], "above 0.7 of the way from neutral a picture shows it"
    assert not dial.model.module._forward_hooks, "the model is as it was"


def test_the_dial_finds_where_each_picture_goes_and_leaves_out_what_cannot_be_read(dial):
    """A picture of m goes at 4 s = 0.3 m; the fourth is the same with and without the concept."""
    assert dial.pictures.readable.tolist() == [True, True, True, False]
    curve = measure_curve(dial.sample, dial, 4, halvings=8)
    flips = [curve.scale_at((i + 0.5) / 3) for i in range(3)]
    assert flips == pytest.approx([0.075, 0.15, 0.3], abs=2**-8) and curve.reader == "the gone score"


def test_the_forwards_that_are_told_are_those_that_are_taken(dial):
    measure_curve(dial.sample, dial, 4, halvings=3)
    assert dial.reported[-1] == dial.model.forwards == dial_forwards(4, 3)
    assert dial.reported == sorted(dial.reported)


def test_factors_and_scales_are_moved_once_and_not_by_every_linear(dial, monkeypatch):
    """Four pictures are one batch: its scales are moved once, however many forwards follow."""
    moved, used = [], []
    plain = apply.add_to_output

    def move(tensor, device):
        moved.append(tensor.clone())
        return moved[-1]

    def add(x, y, parts, scale):
        used.append((parts[0].factors.up, parts[0].factors.down, scale))
        return plain(x, y, parts, scale)

    monkeypatch.setattr(apply, "on_device", move)
    monkeypatch.setattr(gone_dial, "on_device", move)
    monkeypatch.setattr(apply, "add_to_output", add)
    again = GoneDial(dial.model, dial.held_out, dial.eraser)
    assert len(moved) == 2
    again.sample(torch.linspace(0, 1, 4))
    assert len(moved) == 3 and len(used) == len(dial.held_out.sigmas) - 1
    assert all(tensor is here for each in used for tensor, here in zip(each, moved, strict=True))


def test_a_look_takes_no_more_pictures_at_once_than_the_estimate_counts():
    """A forward of the teacher is four sequences at a batch size of 1."""
    noise = torch.zeros(16, 1, 2, 2)
    batches = HeldOut(None, None, None, noise, torch.zeros(2)).batches()
    assert max(map(len, batches)) == plan.TEACHER_BATCHES and sum(batches, []) == list(range(16))


def test_a_header_says_what_is_looked_at():
    header = {"concept": "tabby", "neutral": "{dog}", "held_out": json.dumps(["a {} asleep"]), "width": "96"}
    config = dial_config({f"eraseanything.{name}": value for name, value in header.items()}, "", False, 5)
    assert (config.concept, config.neutral, config.held_out) == ("tabby", "{dog}", ("a {} asleep",))
    assert (config.width, config.look_pictures, config.guidance) == (96, 5, 3.5)


def test_a_typed_concept_goes_over_the_header():
    config = dial_config({"eraseanything.concept": "tabby", "eraseanything.neutral": "{dog}"}, "star", False, 5)
    assert config.concept == "star" and config.neutral != "{dog}" and config.held_out


def test_without_a_concept_prompts_are_needed():
    with pytest.raises(ValueError, match="x does not say what it erases: type its concept into `concept`, or prompts"):
        dial_config({}, "", False, 5, "x")
    assert dial_config({}, "", True, 5).concept == ""


def test_own_prompts_are_compared_with_the_same_without_the_concept():
    drawn = own_sentences(["a red cat", "a lion"], 3, "cat", "{dog}")
    texts = [(sentence.concept.text, sentence.neutral.text) for sentence in drawn]
    assert texts == [("a red cat", "a red dog"), ("a lion", ""), ("a red cat", "a red dog")]
    assert own_sentences([], 3, "cat", "{dog}") == []
