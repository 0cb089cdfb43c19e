"""The tables of the presets and of the gone score count what was measured."""

import json
import re

import pytest

from eraseanything_core.training.gone import THRESHOLD
from lab.measurements import gone, presets
from lab.provenance import BENCHMARKS


def row(concept, acc_e, seed=0, stopped_at=200, **more):
    counts = {"acc_e": acc_e, "acc_g": 1, "acc_ir": 9, "acc_ir_before": 10}
    return (
        {"preset": "balanced", "concept": concept, "seed": seed, "count": 10, "stopped_at": stopped_at}
        | counts
        | {"cpu_seconds": 10.0, "verdict": "gone"}
        | more
    )


def test_a_preset_is_the_mean_of_its_trainings():
    summary = presets.summary([row("ball", 0), row("ball", 2, seed=1), row("box", 4, stopped_at=100)])
    assert summary["acc_e"] == pytest.approx(6 / 30) and summary["n"] == 30 and summary["seeds"] == [0, 1]
    assert summary["acc_e_by_concept"] == {"ball": 0.1, "box": 0.4}
    assert summary["acc_ir"] == 0.9 and summary["acc_ir_before"] == 1.0
    assert summary["stopped_at"] == {"ball 0": 200, "ball 1": 200, "box 0": 100}
    assert summary["shown"] == {"ball 0": 0, "ball 1": 2, "box 0": 4} and summary["verdicts"]["box 0"] == "gone"


def test_the_table_names_the_worst_concept():
    table = presets.report([row("ball", 0), row("box", 4)], "d", {})
    text = presets.markdown(table)
    assert "| 20.0% | box 40.0% | 10.0% | 90.0% | 100.0% | - | 200 | 1 | 20 |" in text
    assert "ball 0.0%, box 40.0%" in text


def test_a_preset_that_was_not_measured_now_keeps_its_figures():
    before = presets.report([row("ball", 0, preset="quick"), row("ball", 3)], "old", {})
    table = presets.report([row("ball", 1)], "new", before)
    assert table["quick"] == before["quick"] and table["quick"]["commit"] == "old"
    assert table["balanced"]["commit"] == "new" and table["balanced"]["acc_e"] == 0.1
    text = presets.markdown(table)
    assert "`python scripts/dev.py presets --preset quick --seeds 1 --count 10` at old" in text and "at new" in text


def test_the_object_is_read_where_a_style_is_erased():
    """A picture in which nothing can be seen counts as erased too."""
    table = presets.report([row("ball", 0), row("dotted", 0, object=7)], "d", {})
    assert table["balanced"]["object_of_styles"] == 0.7
    assert "| 90.0% | 100.0% | 70.0% | 200 | 1 | 20 |" in presets.markdown(table)


def test_no_judged_concept_chose_anything():
    assert len(presets.JUDGED) == 12 and not set(presets.JUDGED) & set(presets.VALIDATION)


def test_the_stored_presets_have_every_key():
    stored = json.loads((BENCHMARKS / "presets.json").read_text(encoding="utf-8"))
    keys = {"pflop", "peak_gib", "acc_e", "acc_e_by_concept", "acc_ir", "acc_ir_before", "acc_g", "n", "seeds"}
    measured = [preset for preset in presets.PRESETS if preset in stored]
    assert measured and all(keys | {"stopped_at"} <= set(stored[preset]) for preset in measured)


README = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")


def stored_table(name):
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_readme_has_the_rows_of_the_stored_presets():
    stored = {preset: entry for preset, entry in stored_table("presets").items() if preset in presets.PRESETS}
    assert "balanced" in stored, "the default is measured"
    for preset, entry in stored.items():
        cells = ("acc_e", "acc_g", "acc_ir", "acc_ir_before")
        rates = " | ".join(f"{entry[cell]:.1%}".replace("%", " %") for cell in cells)
        cost = f"{entry['pflop']:.1f} | {entry['peak_gib']:.1f} GiB"
        assert f"| `{preset}` | {cost} | {rates} | {len(entry['seeds'])} |\n" in README


def test_the_readme_has_what_the_bench_has_counted():
    stored = stored_table("results")
    for run in stored["cost"]["runs"]:
        preset = run["preset"]
        looks, neutral = stored["looks_share"][preset], stored["neutral_check_share"][preset]
        shares = f"{looks:.0%} | {neutral:.0%}".replace("%", " %")
        assert f"| `{preset}` | {run['pairs']} | {run['pflop']:.1f} PFLOP | {shares} |\n" in README
        assert looks <= 0.2 and f"{looks + neutral:.0%} of `{preset}`".replace("%", " %") in README


def test_the_readme_counts_the_verdicts_that_were_right():
    """Gone is right where no picture shows the concept, and not gone where one does."""
    entry = stored_table("presets")["balanced"]
    right = [text.startswith("gone") == (entry["shown"][run] == 0) for run, text in entry["verdicts"].items()]
    said = re.findall(r"right\s+in\s+(\d+)\s+of\s+(\d+)\s+trainings", README)
    assert len(said) == 2 and set(said) == {(str(sum(right)), str(len(right)))}


def test_the_page_of_the_gone_score_is_the_stored_table_with_its_plot():
    page = (BENCHMARKS / "gone.md").read_text(encoding="utf-8")
    assert page == gone.markdown(stored_table("gone")) and "](gone.png)" in page
    assert (BENCHMARKS / "gone.png").is_file()


def looked(concept="ball"):
    """Four pictures, of which the last cannot be read; the score is wrong about the second."""
    low, high = THRESHOLD - 0.1, THRESHOLD + 0.1
    look = {"pair": 10, "cnn": [True, True, False, True], "mean": [high, low, low, low]}
    look |= {"nearness": [1.0, 1.0, 0.0, 0.0], "likelihood": [0.0, 1.0, 0.0, 0.0]}
    gone_later = {"pair": 20, "cnn": [False] * 4, "mean": [low] * 4, "nearness": [0.0] * 4, "likelihood": [0.0] * 4}
    return {"concept": concept, "readable": [True, True, True, False], "looks": [look, gone_later]}


def test_a_look_counts_readable_pictures_only():
    first, second = gone.look_rates(looked())
    assert first["cnn"] == pytest.approx(2 / 3) and first["score"] == pytest.approx(1 / 3)
    assert (first["nearness"], first["likelihood"]) == pytest.approx((2 / 3, 1 / 3))
    assert first["agree"] == [True, False, True] and (first["pair"], second["pair"]) == (10, 20)
    assert second["cnn"] == second["score"] == 0 and second["agree"] == [True] * 3


def test_validation_concepts_stand_apart():
    table = gone.report([looked("ball"), looked("star")], {"command": "c", "commit": "d"})
    assert table["test"]["concepts"] == table["validation"]["concepts"] == 1
    assert (
        table["test"]["agreement"]["value"] == pytest.approx(5 / 6, abs=1e-4) and table["test"]["agreement"]["n"] == 6
    )
    assert [look["concept"] for look in table["looks"]] == ["ball", "ball", "star", "star"]
