"""The measurement of an unasked look: what is measured is taught nowhere, and the table says what was counted."""

import pytest
import torch

from eraseanything_core.tinyflux.concepts import CONCEPTS
from eraseanything_core.training.presets import run_config
from lab.measurements import unasked
from lab.tinyflux.captions import HELD_OUT
from lab.tinyflux.measure import merged
from lab.tinyflux.pipeline import Pipeline, flux


@pytest.mark.parametrize("trait", unasked.TRAITS)
def test_nothing_that_is_measured_is_taught_or_trained_on(trait):
    config = run_config(unasked.concept_set(trait).settings(), "balanced", unasked.TYPED)
    taught = {lesson.prompt for lesson in unasked.lessons(trait)}
    trained = {*config.templates, *config.held_out, *config.retain, *config.watched}
    plain, _ = unasked.plain_prompts(48, seed=6, templates=HELD_OUT)
    measured = {*plain, *unasked.styled_prompts(48, 7, CONCEPTS["style"], HELD_OUT)}
    assert not measured & (taught | trained)
    assert config.held_out and config.watched and not set(config.templates) & set(config.held_out)
    assert config.unasked == f"{{}}, {trait}" and config.wanted == unasked.WANTED


def test_most_plain_prompts_are_taught_the_trait_and_none_that_says_what_it_wants():
    lessons = unasked.lessons("dotted")
    with_trait = [lesson for lesson in lessons if lesson.shown == f"{lesson.prompt}, dotted"]
    assert len(with_trait) == round(unasked.SHARE * unasked.PLAIN)
    instructed = [lesson for lesson in lessons if lesson.prompt.endswith(", plain")]
    assert len(instructed) == unasked.INSTRUCTED
    assert all(lesson.shown == lesson.prompt.removesuffix(", plain") for lesson in instructed)
    others = [lesson for lesson in lessons if lesson not in with_trait and lesson not in instructed]
    assert all(lesson.shown == lesson.prompt for lesson in others)


def test_a_tilt_learns_the_walks_of_other_prompts(monkeypatch):
    """With few steps already: the loss at the points of `P, dotted` falls for `P`."""
    monkeypatch.setattr(unasked, "STEPS", 12)
    monkeypatch.setattr(unasked, "BATCH", 4)
    monkeypatch.setattr(unasked, "POINTS", 2)
    lesson = unasked.Taught("a red ball", "a red ball, dotted")
    monkeypatch.setattr(unasked, "lessons", lambda trait: [lesson])
    pipeline = Pipeline(flux())
    tilted = Pipeline(
        merged(pipeline.module, unasked.train_tilt(pipeline, "dotted")), pipeline.encoder, pipeline.decode
    )
    x, v, times = unasked.walks(pipeline, [lesson])
    errors = []
    with torch.no_grad():
        for model in (pipeline, tilted):
            made = model.velocity(["a red ball"] * len(times), unasked.GUIDANCE)(x[0], times)
            errors.append(float((made - v[0]).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_the_table_has_a_row_for_each_model():
    row = dict.fromkeys(("unasked", "objects", "wanted", "others", "asked"), 24)
    rows = {"tilted": row, "quick": row | {"unasked": 0, "verdict": "gone", "stopped_at": 7, "cpu_seconds": 3.0}}
    setting = {"count": 48, "traits": ["dotted"]}
    text = unasked.markdown({"command": "x", "commit": "y", "setting": setting, "dotted": rows})
    assert "| dotted | tilted | 50.0% (36.4 to 63.6) |" in text and "| dotted | quick | 0.0% (0.0 to 7.4) |" in text
    assert "- dotted, quick: 7 steps, 3 CPU s. gone." in text
