"""What erasers of TinyFlux are trained on never meets what they are measured on."""

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.intervals import wilson
from eraseanything_core.tinyflux.concepts import SYNONYMS, kind_of
from eraseanything_core.training.config import EraseConfig
from lab.tinyflux.captions import HELD_OUT
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.recipe import TEST, VALIDATION, cells, erase_config


def words(text: str) -> set[str]:
    return {word.strip(",") for word in text.split(" ")}


@pytest.mark.parametrize("concept", [*VALIDATION, *TEST])
def test_training_never_sees_the_held_out_synonym(concept):
    config, held_out = erase_config(concept), SYNONYMS[concept][2]
    seen = {*config.synonyms, *config.irrelevant, *config.templates, *config.retain, config.neutral}
    assert not any(held_out in words(text) for text in seen)


@pytest.mark.parametrize("concept", [*VALIDATION, *TEST])
def test_what_is_kept_does_not_name_the_concept(concept):
    config = erase_config(concept)
    assert not any(words(text) & {concept, *SYNONYMS[concept]} for text in config.retain)
    assert len(config.irrelevant) == 9 and concept not in config.irrelevant


def test_cells_ask_what_their_name_says():
    made = cells("star", 36)
    assert all("star" in words(p) for p in made["acc_e"].prompts)
    assert all("starlet" in words(p) and "star" not in words(p) for p in made["acc_g"].prompts)
    for name in ("acc_ir", "unrelated"):
        assert not any("star" in words(p) for p in made[name].prompts)
    assert set(made["acc_ir"].kinds) == {"entity"} and len(set(made["acc_ir"].concepts)) == 9
    assert set(made["unrelated"].kinds) == {"style", "relation"}
    seeds = [seed for cell in made.values() for seed in cell.seeds]
    assert len(seeds) == len(set(seeds)) == 144


def test_held_out_templates_are_what_is_measured():
    starts = {t.split("{")[0] for templates in HELD_OUT.values() for t in templates}
    assert all(any(p.startswith(s) for s in starts) for p in cells("above", 20)["acc_e"].prompts)


def test_settings_were_not_chosen_on_the_test_concepts():
    assert not set(VALIDATION) & {*TEST, "heart"}  # the demo's
    assert [kind_of(c) for c in VALIDATION] == ["entity"] * 2 + ["style"] * 2 + ["relation"] * 2
    assert [kind_of(c) for c in TEST].count("relation") == 1


def test_a_word_of_another_world_is_refused():
    with pytest.raises(ValueError, match="no concept of TinyFlux's world"):
        kind_of("Pikachu")


def test_prompts_hold_a_distorted_name_only():
    import random

    text = prompt_with(random.Random(0), "moon", "crescent", "misspelt")
    assert not words(text) & {"moon", "crescent"}


def test_wilson_interval():
    low, high = wilson(25, 200)
    assert (round(low, 3), round(high, 3)) == (0.086, 0.178)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="no images"):
        rate([])


def test_the_help_page_says_where_the_recipe_leaves_the_defaults():
    """Every setting that differs, with both values; words, sentences and the neutral phrase belong to the concept."""
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+ \| \S+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE))
    words = {"concept", "synonyms", "irrelevant", "templates", "retain", "neutral"}
    default, recipe = (dataclasses.asdict(c) for c in (EraseConfig(concept="star"), erase_config("star")))
    shown = {k: [f"{v:g}" if isinstance(v, float) else str(v) for v in (default[k], recipe[k])] for k in default}
    assert told == {k: " | ".join(v) for k, v in shown.items() if k not in words and default[k] != recipe[k]}
