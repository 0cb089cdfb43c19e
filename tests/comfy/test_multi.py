"""What lab/measurements/multi.py measures: every mode, prompts of two erased concepts, and outcomes of one recipe."""

import dataclasses
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core.concepts.prompts import fill
from eraseanything_core.lora import merge
from eraseanything_core.lora.transport import likeness
from eraseanything_core.tinyflux.concepts import SYNONYMS, kind_of
from lab.measurements import multi
from lab.provenance import stored_outcomes
from lab.tinyflux import measure
from lab.tinyflux.pipeline import Pipeline, TrainerText, flux
from lab.tinyflux.recipe import TEMPLATES, VALIDATION, Cell, kept_prompts

ROOT = Path(__file__).resolve().parents[2]


def test_every_mode_of_the_node_is_measured():
    assert set(multi.MODES) == {*merge.MODES, merge.FUSION, merge.GATED, merge.TRANSPORT}


def test_the_page_has_the_cosines_of_transport():
    """Their medians over six concepts, for prompts with the name, with a synonym, and without either."""
    text = TrainerText(Pipeline(flux()))
    found = ([], [], [])
    for concept in VALIDATION:
        templates = TEMPLATES[kind_of(concept)]
        named = [fill(template, concept) for template in templates[:12]]
        synonyms = [fill(template, word) for template in templates[:4] for word in SYNONYMS[concept][:2]]
        for kind, prompts in enumerate((named, synonyms, kept_prompts(concept, 24, seed=1))):
            found[kind].extend(likeness(prompt, concept, text) for prompt in prompts)
    name, synonym, without = (f"{statistics.median(values):.2f}" for values in found)
    page = " ".join((ROOT / "docs" / "combining.md").read_text(encoding="utf-8").split())
    told = (
        f"median {name} for {len(found[0])} prompts with the name, {synonym} for {len(found[1])} with a synonym, and "
    )
    assert f"{told}{without} for {len(found[2])} without either" in page


@pytest.mark.parametrize("mode", multi.TOGETHER)
def test_prompts_of_two_erased_concepts(mode):
    concepts = multi.order()[:6]
    made = multi.cells(mode, concepts, 20)
    entity, style = made["acc_e2_entity"], made["acc_e2_style"]
    assert entity.prompts == style.prompts and entity.seeds == style.seeds
    for *pair, prompt in zip(entity.concepts, style.concepts, entity.prompts, strict=True):
        assert [kind_of(c) for c in pair] == ["entity", "style"] and set(pair) <= set(concepts)
        assert set(pair) <= {word.strip(",") for word in prompt.split(" ")}, prompt
    assert not {"acc_e2_entity", "acc_e2_style"} & set(multi.cells(mode, concepts[:1], 20)), "one is no pair"


def test_a_cell_that_is_read_twice_is_drawn_once():
    class Counting:
        calls = 0

        def pictures(self, prompts, seeds, guidance):
            self.calls += 1
            return torch.zeros(len(prompts), 3, 96, 96)

    counting = Counting()
    once = multi.CachedPictures(counting)
    drawn = [once.pictures(["a"], [seed]) for seed in (1, 1, 2)]
    assert counting.calls == 2 and drawn[0] is drawn[1] and drawn[0] is not drawn[2]


def test_what_is_kept_when_all_are_erased_is_a_point_of_the_plot():
    rows = [
        {"mode": "sum", "judge": judge, "concepts": 10, "acc_e": {"value": 0.1}, "acc_ir": {"value": 0.99}}
        for judge in ("cnn", "oracle")
    ]
    rows.append({"mode": "sum", "judge": "cnn", "concepts": 30, "acc_e": {"value": 0.2}, "kept": {"value": 0.92}})
    assert multi.series(rows, "sum", "acc_ir") == ([10, 30], [0.99, 0.92])
    assert multi.series(rows, "sum", "acc_e") == ([10, 30], [0.1, 0.2])
    assert multi.series(rows, "sum", "acc_g") == ([], [])


def test_outcomes_of_another_recipe_are_not_used(monkeypatch, tmp_path):
    bench = multi.CombinationBenchmark()
    before = bench.setting(20)
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps({"setting": before, "sum 3": {}}))
    assert "sum 3" in stored_outcomes(raw, bench.setting(20))
    recipe = multi.config
    monkeypatch.setattr(multi, "config", lambda concept: dataclasses.replace(recipe(concept), targets="text_qkv"))
    after = bench.setting(20)
    assert [name for name in before if before[name] != after[name]] == ["recipes"]
    assert "sum 3" not in stored_outcomes(raw, after)


def test_the_oracle_reads_the_first_pictures_of_a_cell(monkeypatch):
    """Of every kind; the other judge reads all."""
    seen = {"oracle": [], "cnn": []}

    def reader(name):
        return lambda pictures, kind: [
            seen[name].append(int(p.mean())) or SimpleNamespace(**{kind: "star"}) for p in pictures
        ]

    class Numbered:
        def pictures(self, prompts, seeds, guidance):
            return torch.tensor(seeds, dtype=torch.float).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    monkeypatch.setattr(measure, "readers", lambda net: {name: reader(name) for name in seen})
    cell = Cell(["entity", "style"] * 3, ["star", "moon"] * 3, [""] * 6, list(range(6)))
    hits, _ = measure.read_cell(Numbered(), None, cell, by_oracle=3)
    assert hits == {"oracle": [True, False, True], "cnn": [True, False] * 3}
    assert (sorted(seen["oracle"]), sorted(seen["cnn"])) == ([0, 1, 2], list(range(6)))
