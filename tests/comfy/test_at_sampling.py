"""Erase at Sampling in ComfyUI's own sampling: what is computed, what it costs, and what stays as it was."""

from collections import Counter
from types import SimpleNamespace

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch

from eraseanything_core.comfy_bridge.extra_predictions import LOOKS, NAMES, ExtraPredictions, with_extra_predictions
from eraseanything_core.erasers.at_sampling import Projection
from tests.comfy.columns import new_family
from tests.comfy.families.words import Words

FAMILIES = ("Flux2", "QwenImage", "WAN21_T2V", "SD15", "Lumina2")
STEPS = 4


@pytest.fixture(params=FAMILIES)
def family(request):
    return made(request.param)


def made(name):
    """A small model with three prompts: of the concept, of its neutral words, and one that is drawn."""
    family = new_family(name)
    clip = Words(family.case)
    for key, text in (("concept", "a red star"), ("neutral", "a thing"), ("prompt", "two red stars")):
        setattr(family, key, clip.encode_from_tokens_scheduled(clip.tokenize(text)))
    return family


def sample(family, model, prompt, cfg=1.0, steps=STEPS):
    noise = torch.randn(2, *family.case.size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", prompt, family.neutral, noise * 0, disable_pbar=True, seed=0
        )


def erasing(family, threshold=0.1, strength=1.0, lowest=0.0):
    """The MODEL with the wrapper, and what its samplings reported."""
    reports = []
    extra = ExtraPredictions(
        family.concept, family.neutral, 1e9, lowest, Projection(threshold, strength), reports.append
    )
    return with_extra_predictions(family.model, extra), reports


def counted(model):
    """The MODEL, and how many rows each of its forwards had."""
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "count", count)
    return clone, rows


def test_a_picture_without_the_concept_keeps_every_bit(family):
    plain = sample(family, family.model, family.neutral)
    erased, reports = erasing(family)
    assert torch.equal(sample(family, erased, family.neutral), plain)
    assert reports[0].calls == LOOKS < STEPS and reports[0].acted == 0
    assert max(float(present.abs().max()) for present in reports[0].present) < 1e-3


def test_the_concept_is_projected_off(family):
    """At strength 1 the prompt that is the concept is drawn as its neutral words are."""
    erased, reports = erasing(family)
    plain = sample(family, family.model, family.concept)
    expected = sample(family, family.model, family.neutral)
    found = sample(family, erased, family.concept)
    moved = (plain - expected).abs().max()
    assert moved > 1e-3 * plain.abs().max(), "both prompts give the same: the test says nothing"
    assert (found - expected).abs().max() < 1e-2 * moved
    assert torch.stack(reports[0].present).sub(1).abs().max() < 1e-2
    assert torch.equal(sample(family, family.model, family.concept), plain), "the caller's MODEL has changed"


def test_one_step_is_the_closed_form(family):
    """With guidance: u + w (p' - u), where only p' is new, from predictions that are made one by one here."""
    seen = {}

    def keep(args):
        seen.update(args)
        return args["denoised"]

    probe = family.model.clone()
    probe.set_model_sampler_post_cfg_function(keep)
    predictions = {}
    for name in ("prompt", "concept", "neutral"):
        sample(family, probe, getattr(family, name), cfg=3.0, steps=1)
        predictions[name] = seen["cond_denoised"].double()
    uncond = seen["uncond_denoised"].double()
    p, c, a = (predictions[name] for name in ("prompt", "concept", "neutral"))
    d = (c - a).flatten(1)
    s = ((p - a).flatten(1) * d).sum(1) / d.square().sum(1)
    erased, _ = erasing(family, threshold=-1e9, strength=1.5)
    erased.set_model_sampler_post_cfg_function(keep)
    sample(family, erased, family.prompt, cfg=3.0, steps=1)
    new = p - 1.5 * s.view(-1, *[1] * (p.ndim - 1)) * (c - a)
    expected = uncond + 3.0 * (new - uncond)
    torch.testing.assert_close(seen["uncond_denoised"].double(), uncond, rtol=1e-3, atol=1e-4)
    scale = float((expected - (uncond + 3.0 * (p - uncond))).abs().max())
    assert (seen["denoised"].double() - expected).abs().max() < 1e-2 * scale


def test_it_costs_one_call_of_two_rows_a_picture_in_the_steps_it_looks_at(family):
    sigmas = comfy.samplers.calculate_sigmas(family.model.get_model_object("model_sampling"), "simple", STEPS)
    erased, reports = erasing(family, threshold=-1e9, lowest=float(sigmas[1]))  # of the first two steps
    model, rows = counted(erased)
    sample(family, model, family.prompt)
    assert Counter(rows) == {2: STEPS, 4: 2} or Counter(rows) == {2: STEPS + 4}, "a call may come in parts"
    assert reports[0].calls == 2
    plain, plain_rows = counted(family.model)
    sample(family, plain, family.prompt)
    assert plain_rows == [2] * STEPS


def test_the_two_prompts_are_asked_as_the_drawn_one_is():
    """A guidance value of FluxGuidance goes to all three."""
    family = made("Flux2")
    given = []

    def keep(executor, model, conds, *args):
        given.append([row.get("guidance") for rows in conds if rows for row in rows])
        return executor(model, conds, *args)

    erased, _ = erasing(family)
    erased.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "keep", keep)
    prompt = [[family.prompt[0][0], {**family.prompt[0][1], "guidance": 2.25, "strength": 0.5}]]
    sample(family, erased, prompt, steps=1)
    assert [2.25, 2.25] in given


def test_an_interrupt_leaves_nothing_behind():
    family = made("Flux2")
    plain = sample(family, family.model, family.concept)
    erased, _ = erasing(family)
    guider = SimpleNamespace()

    def stop(executor, *args, **kwargs):
        guider.conds = executor.class_obj.conds
        assert set(NAMES) <= set(guider.conds)
        comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    stopped = erased.clone()
    stopped.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "zz_stop", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(family, stopped, family.concept)
    assert not set(NAMES) & set(guider.conds)
    assert torch.equal(sample(family, family.model, family.concept), plain)
    assert not torch.equal(sample(family, erased, family.concept), plain)
