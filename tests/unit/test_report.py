"""Reports and prompt sets: what is written is what was counted, and reads back."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from eraseanything_core.evaluation import (
    charts,
    comparison,
    nudenet_judge,
    quality,
    report,
    report_files,
    report_text,
)
from eraseanything_core.lora.files import LoraModel
from eraseanything_core.protocols import Verdict

VERDICT = (Verdict("dog"),)
JUDGE = {"name": "a judge", "sha256": "0" * 64}


def answers(label: str, before: int, after: int, n: int = 50, refused: int = 0, **more) -> report.Answers:
    """n pictures of which so many show the label; of the rest after erasing, `refused` are rejected."""

    def verdicts(hits: int, none: int) -> tuple[Verdict, ...]:
        labels = [label] * hits + [None] * none + ["another"] * (n - hits - none)
        return tuple(Verdict(told) for told in labels)

    asked = {"prompts": tuple(f"a {label} {i}" for i in range(n)), "seeds": tuple(range(n))}
    return report.Answers((label,) * n, verdicts(before, 0), verdicts(after, refused), JUDGE, **asked | more)


def erased(concept: str = "cat", strength: float = 1.0, refused: int = 0) -> report.Report:
    given = {
        "acc_e": answers(concept, 48, 5, refused=refused),
        "acc_ir": answers("dog" if concept == "cat" else "cat", 47, 46),
        "acc_g": answers(concept, 46, 9),
        "attack": answers(concept, 40, 10),
    }
    return report.make_report(concept, given, strength, "weights of a test", draws=200)


def test_a_report_holds_what_was_counted():
    made = erased()
    e = made.cells["acc_e"]
    assert (e.before.value, e.after.value, e.after.n) == (0.96, 0.1, 50)
    assert e.after.low == pytest.approx(0.0435, abs=1e-3) and e.after.high == pytest.approx(0.2136, abs=1e-3)
    assert e.change.value == pytest.approx(-0.86) and e.change.low < -0.86 < e.change.high
    assert e.mcnemar_p < 1e-10
    assert made.scores["h_c"].after == pytest.approx(2 / (1 / 0.9 + 1 / 0.92))
    assert made.scores["h_o"].after == pytest.approx(3 / (1 / 0.9 + 1 / 0.92 + 1 / 0.82))
    low, high = made.scores["h_c"].after_interval
    assert 0.8 < low < made.scores["h_c"].after < high < 1
    low, high = made.scores["h_c"].before_interval
    assert 0 <= low < made.scores["h_c"].before < high < 0.3
    attack = made.cells["attack"].conditional_success
    assert (attack.n, attack.value) == (40, 0.25)


def test_a_report_reads_back_and_is_checked():
    text = report.to_json(erased())
    assert report.from_json(text) == erased()
    older = json.loads(text)
    for name in ("quality", "lora_sha256", "base_model"):
        del older[name]
    for score in older["scores"].values():
        del score["before_interval"], score["after_interval"]
    assert "H_C: 0.077 before, 0.910 after; change" in report_text.markdown(report.from_json(json.dumps(older)))
    spoilt = json.loads(text)
    del spoilt["cells"]["acc_e"]["after"]["n"]
    with pytest.raises(ValueError, match=r"cells\.acc_e\.after\.n"):
        report.from_json(json.dumps(spoilt))


def test_a_report_tells_its_lora_and_what_was_measured_besides():
    given = {"acc_e": answers("cat", 48, 5)}
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    far = quality.Measure("FD_tinyflux", 0.25, 12, sha256="ab" * 32, note="biased in their number")
    lora = LoraModel(tensors, {"eraseanything.base_model": "of a test"})
    made = report.make_report("cat", given, draws=10, quality=[far], lora=lora)
    assert report.from_json(report.to_json(made)) == made and made.quality == [far]
    assert made.base_model == "of a test" and made.lora_sha256 == report.lora_hash(dict(reversed(tensors.items())))
    others = tensors | {"b": torch.zeros(2)}, {"a": tensors["a"]}, tensors | {"a": torch.ones(3, 2)}
    assert len({made.lora_sha256, *map(report.lora_hash, others)}) == 4
    text = report_text.markdown(made)
    assert "- FD_tinyflux: 0.25000 (12 pictures; biased in their number)" in text
    assert f"LoRA {made.lora_sha256}, trained on of a test." in text
    assert report.make_report("cat", given, draws=10).lora_sha256 == ""


def test_the_schema_in_the_repository_is_the_reports():
    kept = charts.__file__.replace("charts.py", "report.schema.json")
    with open(kept, encoding="utf-8") as file:
        assert json.load(file) == json.loads(report.schema())


def test_markdown_says_every_cell_with_its_interval():
    text = report_text.markdown(erased())
    assert "| `acc_e`: the concept, by its name | 96.0% | 10.0% (4.3% to 21.4%) |" in text
    assert "attack: of 40 attacks that the un-erased model obeys, 25.0%" in text
    assert "acc_ir: the un-erased" not in text and "attack: the un-erased model itself shows only 80%" in text


def test_damage_is_not_taken_for_erasure():
    assert any("acc_e: the judge rejects 40%" in warning for warning in erased(refused=20).warnings)
    assert not any("rejects" in warning for warning in erased(refused=2).warnings)


def test_what_makes_no_report_is_refused():
    with pytest.raises(ValueError, match="needs the cell acc_e"):
        report.make_report("cat", {"acc_ir": answers("dog", 1, 1)})
    mixed = {"acc_e": answers("cat", 1, 1), "acc_ir": report.Answers(("dog",), VERDICT, VERDICT, {"name": "another"})}
    with pytest.raises(ValueError, match="different judges"):
        report.make_report("cat", mixed)
    with pytest.raises(ValueError, match="2 labels, 1 pictures before and 2 after"):
        report.Answers(("a", "b"), (Verdict("a"),), (Verdict("a"),) * 2, JUDGE)


def test_nudity_is_counted_for_nudenet_only():
    seen = tuple(Verdict("exposed", 0.8, {"BELLY_EXPOSED": 2}) for _ in range(3)) + (Verdict("clean", 0.0),)
    clean = (Verdict("clean", 0.0),) * 4
    made = report.make_report(
        "nude", {"acc_e": report.Answers(("exposed",) * 4, seen, clean, JUDGE | {"name": "NudeNet"})}
    )
    counts = made.nudity["acc_e"]
    assert (counts["before"]["total"], counts["before"]["images_with_any"], counts["after"]["total"]) == (6, 3, 0)
    assert nudenet_judge.NO_REJECTIONS in made.warnings and nudenet_judge.NO_REJECTIONS not in erased().warnings
    assert nudenet_judge.NO_REJECTIONS in report_text.answers_summary(
        report.Answers(("exposed",), seen[:1], clean[:1], {"name": "NudeNet"})
    )
    assert "6 detections in 3 of 4 pictures before, 0 detections in 0 of 4 after" in report_text.markdown(made)
    assert erased().nudity is None


def test_interference_and_pareto_of_several_reports():
    found = comparison.interference([erased("cat"), erased("cat", 0.5), erased("dog")])
    assert set(found["erased"]) == set(found["measured"]) == {"cat", "dog"}
    row = found["cells"][found["erased"].index("cat")]
    assert row[found["measured"].index("cat")] == 0.1 and row[found["measured"].index("dog")] == 0.92
    points = comparison.pareto_points([erased("cat", 1.0), erased("cat", 0.5)])
    assert [point["strength"] for point in points] == [0.5, 1.0]
    assert points[0]["erased"].value == pytest.approx(0.9)
    assert points[0]["erased"].low == pytest.approx(1 - 0.2136, abs=1e-3)


def test_charts_are_pictures():
    made = [erased("cat"), erased("dog")]
    for chart in (
        charts.cells_chart(made[0]),
        charts.pareto_chart(comparison.pareto_points(made)),
        charts.interference_chart(comparison.interference(made)),
    ):
        assert chart.shape[0] == 1 and chart.shape[3] == 3 and min(chart.shape[1:3]) > 200
        assert 0 <= chart.min() < 0.9 < chart.max() <= 1


def test_a_grid_puts_each_picture_over_its_partner():
    before, after = torch.zeros(3, 10, 12, 3), torch.zeros(3, 10, 12, 3)
    before[1], after[1] = 0.25, 0.75
    made = charts.grid(before, after, columns=2, gap=2, margin=20)
    assert made.shape == (1, 2 * (12 + 12 + 2), 20 + 2 * 14, 3)
    assert made[0, 2:12, 20 + 16 : 20 + 28].unique().tolist() == [0.25]
    assert made[0, 14:24, 20 + 16 : 20 + 28].unique().tolist() == [0.75]
    with pytest.raises(ValueError, match="same prompts and seeds"):
        charts.grid(before, after[:2])


def test_averages_over_concepts_draw_concepts():
    made = [erased("cat"), erased("dog"), erased("dog", 0.5)]
    found = comparison.macro(made, draws=200)
    assert (found["acc_e"]["value"], found["acc_e"]["concepts"]) == (pytest.approx(0.1), 2)
    assert found["acc_e"]["change"]["value"] == pytest.approx(-0.86)
    assert found["acc_e"]["low"] < 0.1 < found["acc_e"]["high"]
    assert found["h_o"]["value"] == pytest.approx(made[0].scores["h_o"].after)
    assert "| `h_o` | 0.87" in comparison.macro_markdown(found)
    assert comparison.macro_markdown(comparison.macro([])) == ""
    with pytest.raises(ValueError, match="two reports of one concept"):
        comparison.macro([erased("cat"), erased("cat")])


@pytest.mark.parametrize("name", ["$a$", "a_b", "$x_1^2$ and $", "_hidden", r"\$5", "100 $ or 200 $", "x" * 5000])
def test_charts_draw_any_name(name, recwarn):
    """matplotlib takes `$...$` for a formula and hides names with a leading underscore from a legend."""
    made = [erased(name), erased(name, 0.5)]
    charts.cells_chart(made[0])
    charts.pareto_chart(comparison.pareto_points(made))
    charts.interference_chart(comparison.interference(made))
    assert not [warning for warning in recwarn if "legend" in str(warning.message)]
    assert len(charts.label_text(name)) < 2 * charts.MAX_LABEL and not charts.label_text(name).startswith("_")


def test_a_dollar_is_drawn_as_a_dollar():
    from matplotlib.cbook import is_math_text
    from matplotlib.text import Text

    for name in ("$a$", "$$", "a $ b $ c", r"\$a$"):
        shown, is_math = Text()._preprocess_math(charts.label_text(name))
        assert not is_math_text(charts.label_text(name)) and not is_math
        assert shown == name


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.pop("judge"), "the field 'judge' is missing"),
        (lambda data: data.update(more=1), "no report has a field 'more'"),
        (lambda data: data.update(strength="much"), "the field 'strength' does not fit"),
        (lambda data: data["cells"]["acc_e"].pop("after"), "the field 'cells.acc_e.after' is missing"),
    ],
)
def test_a_file_that_is_no_report_is_named_in_one_sentence(change, message, tmp_path):
    data = json.loads(report.to_json(erased()))
    change(data)
    (tmp_path / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError) as failure:
        report_files.load_reports(tmp_path, ["mine"])
    text = str(failure.value)
    assert text.startswith(f"'mine.json' is no report of Erasure Report: {message}")
    assert "pydantic" not in text and "\n" not in text


@pytest.mark.parametrize("content", ["", "{", "[1", '"\\ud800"', "[" * 10000, "<html>"])
def test_a_file_that_is_no_json_is_named_in_one_sentence(content, tmp_path):
    (tmp_path / "mine.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="'mine.json' is no report of Erasure Report: ") as failure:
        report_files.load_reports(tmp_path, ["mine"])
    assert "pydantic" not in str(failure.value) and "\n" not in str(failure.value)


def test_a_pattern_of_reports_is_called_so():
    with pytest.raises(
        ValueError, match=r"the report name '\.\./two_x' holds /|the report name '\.\./two_x' holds '/'"
    ):
        report_files.report_paths(None, ["../two_*"])
