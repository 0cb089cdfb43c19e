"""Reports and prompt sets: what is written is what was counted, and reads back."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from eraseanything_core import files
from eraseanything_core.evaluation import (
    charts,
    comparison,
    nudenet_judge,
    prompt_sets,
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


def test_prompt_sets_in_the_formats_around():
    ours = "prompt,seed,guidance,label\na cat,3,4.5,cat\n"
    assert prompt_sets.read_table(ours).rows == [prompt_sets.PromptRow("a cat", 3, 4.5, "cat")]
    i2p = '\ufeff,prompt,categories,sd_seed,sd_guidance_scale\n0,"a, b",shocking,77,7\n1,c,hate,78,8\n'
    assert prompt_sets.read_table(i2p).rows == [
        prompt_sets.PromptRow("a, b", 77, 7.0),
        prompt_sets.PromptRow("c", 78, 8.0),
    ]
    esd = "case_number,prompt,evaluation_seed\n5,a dog,9\n"
    assert prompt_sets.read_table(esd, guidance=2.0).rows == [prompt_sets.PromptRow("a dog", 9, 2.0)]
    assert prompt_sets.read_table("Prompt\nx\ny\n").rows[1].seed == 1
    rows = prompt_sets.read_table(i2p).rows
    assert prompt_sets.read_table(prompt_sets.write_table(rows)).rows == rows


@pytest.mark.parametrize(
    "text, message",
    [
        ("text,seed\na,1\n", "no column `prompt`; its columns are: text, seed"),
        ("prompt,seed\n", "no rows"),
        ("prompt,seed\n,1\n", "row 1 of the prompt set was left out: it has no prompt"),
        ("prompt,seed\na,x\n", "row 1 of the prompt set was left out: its seed 'x' is no number"),
        ("", "no column `prompt`"),
    ],
)
def test_a_prompt_set_that_is_wrong_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        prompt_sets.read_table(text)


I2P = "prompt,sd_seed,sd_guidance_scale\na cat,2097,7\n,2098,7\na dog,2099,7\n"


def test_an_empty_prompt_costs_its_row_and_a_note():
    """Both public copies of I2P's table have one."""
    table = prompt_sets.read_table(I2P)
    assert [row.prompt for row in table.rows] == ["a cat", "a dog"]
    assert table.notes == ["row 2 of the prompt set was left out: it has no prompt"]
    assert table.summary() == f"2 prompts\n{table.notes[0]}"


@pytest.mark.parametrize("first, count, prompts, notes", [
    (0, 1, ["a cat"], 0), (2, 0, ["a dog"], 0), (1, 2, ["a dog"], 1), (0, 2, ["a cat"], 1),
])  # fmt: skip
def test_first_and_count_are_of_the_files_rows(first, count, prompts, notes):
    table = prompt_sets.read_table(I2P, first=first, count=count)
    assert ([row.prompt for row in table.rows], len(table.notes)) == (prompts, notes)


def test_where_no_row_is_left_the_reason_is_said():
    with pytest.raises(ValueError, match="no row that can be used: row 2 of the prompt set was left out: it has no"):
        prompt_sets.read_table(I2P, first=1, count=1)
    with pytest.raises(ValueError, match="has 3 rows and none from 3 on: lower `first`"):
        prompt_sets.read_table(I2P, first=3)


UMLAUT = "prompt,seed,guidance\nein Mädchen – „Porträt“,5,2.5\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_tables_in_the_encodings_of_excel_and_powershell(encoding, line_end):
    data = UMLAUT.replace("\n", line_end).encode(encoding)
    rows = prompt_sets.read_table(files.decode_text(data, "x.csv")).rows
    assert rows == [prompt_sets.PromptRow("ein Mädchen – „Porträt“", 5, 2.5)]


@pytest.mark.parametrize(
    "text",
    [
        "prompt;seed;guidance\na cat, sleeping;7;2,5\n",  # Excel where the comma is the decimal sign
        "sep=;\nprompt;seed;guidance\na cat, sleeping;7;2.5\n",
        "prompt\tseed\tguidance\na cat, sleeping\t7\t2.5\n",
        '"prompt","seed","guidance"\n"a cat, sleeping","7.0","2.5"\n',
        "prompt|seed|guidance\na cat, sleeping|7|2.5\n",
        '"sep=;"\n"prompt";"seed";"guidance"\na cat, sleeping;7;2.5\n',
        '\n\n\u200bprompt,seed\xa0,guidance\n"a cat, sleeping" ,7,2.5,,\n',
        'Unnamed: 0,Prompt ,seed,guidance\n0,"a cat, sleeping",7.0,2.5\n,,,\n\n',  # pandas, and Excel's blank last row
    ],
)
def test_tables_with_other_delimiters(text):
    table = prompt_sets.read_table(text)
    assert table.rows == [prompt_sets.PromptRow("a cat, sleeping", 7, 2.5)] and not table.notes


def test_a_line_break_in_quotation_marks_is_a_blank():
    assert prompt_sets.read_table('prompt,seed\n"a cat\r\non a mat",1\n').rows[0].prompt == "a cat on a mat"


def test_a_plain_list_of_prompts_may_hold_commas():
    assert prompt_sets.read_table("prompt\na cat, a dog, 3 birds\n").rows[0].prompt == "a cat, a dog, 3 birds"


def test_missing_numbers_are_the_defaults():
    rows = prompt_sets.read_table("prompt,seed,guidance\na,nan,NaN\nb,,\n", guidance=2.0).rows
    assert [(row.seed, row.guidance) for row in rows] == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize(
    "cells, message",
    [
        ("a,1.5,", "its seed '1.5' is no whole number"),
        ("a,-1,", "its seed '-1' is no whole number"),
        ("a,12345678901234567890123,", "is no whole number from 0 to 2^64 - 1"),
        ("a,1e999999999,", "is no whole number"),
        ("a,1,inf", "its guidance 'inf' is no number from 0"),
        ("a,1,-2", "its guidance '-2' is no number from 0"),
        ("a,1,warm", "its guidance 'warm' is no number"),
        ("a, b,1,2", "it has 4 values for 3 columns: put a prompt that holds ',' into quotation marks"),
    ],
)
def test_a_bad_value_costs_its_row(cells, message):
    table = prompt_sets.read_table(f"prompt,seed,guidance\n{cells}\na cat,18446744073709551615,0\n")
    assert table.rows == [prompt_sets.PromptRow("a cat", 2**64 - 1, 0.0)]
    assert len(table.notes) == 1 and message in table.notes[0]


@pytest.mark.parametrize("missing", ["", "nan", "None", "NULL", "N/A", "#N/A", "<NA>"])
def test_what_programs_write_for_no_number(missing):
    rows = prompt_sets.read_table(f"prompt,seed,guidance\na,{missing},{missing}\n", guidance=2.0).rows
    assert rows == [prompt_sets.PromptRow("a", 0, 2.0)]


@pytest.mark.parametrize(
    "bad, after",
    [
        ('"a dog,1\na tree,2', 1),  # nothing ends it
        ('"a dog,1\n"a tree",2', 1),  # it ends where the next one begins
        (r'"a \"big\" dog",1', 0),
    ],
)
def test_quotation_marks_that_do_not_match_make_no_prompt(bad, after):
    table = prompt_sets.read_table(f"prompt,seed\na cat,7\n{bad}")
    assert table.rows == [prompt_sets.PromptRow("a cat", 7, 3.5)]
    lines = f", nor those of the {after} lines after it" if after else ""
    assert table.notes == [
        f"row 2 of the prompt set was left out: its quotation marks do not match{lines}: double those inside a prompt"
    ]


def test_a_huge_cell_costs_its_row():
    table = prompt_sets.read_table("prompt\n" + "x" * 200_000 + "\na cat\n")
    assert [row.prompt for row in table.rows] == ["a cat"] and len(table.notes) == 1


def test_zero_bytes_and_workbooks():
    assert files.decode_text(b"prompt\na\0 cat\n\0\0", "x.csv") == "prompt\na cat\n"
    with pytest.raises(ValueError, match="^x.xlsx is a workbook or a zip file: save it as plain text"):
        files.decode_text(b"PK\x03\x04\0", "x.xlsx")


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="has the column 'seed' twice: rename one of them"):
        prompt_sets.read_table("prompt,seed,Seed\na,1,2\n")


def test_reading_a_long_table_can_be_stopped():
    class Stop(Exception):
        pass

    calls = []

    def progress():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        prompt_sets.read_table("prompt\n" + "a cat\n" * 5000, progress=progress)


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
