"""benchmarks/survival.json: our nodes keep an eraser where rounding takes it, and the file says what is measured."""

import json
from pathlib import Path

import pytest

from lab.measurements.survival import FORMATS, KEPT, STRENGTHS, WAYS, board, erased_now, markdown

FOLDER = Path(__file__).parents[2] / "benchmarks"
REPORT = json.loads((FOLDER / "survival.json").read_text(encoding="utf-8"))


def test_our_nodes_keep_what_rounding_would_take():
    rows = REPORT["rows"]
    assert {row["base"] for row in rows} == set(FORMATS) and {row["strength"] for row in rows} == set(STRENGTHS)
    for row in rows:
        assert set(row["ways"]) == set(WAYS)
        ours = row["ways"]["our nodes"]
        assert KEPT <= ours["kept"] < 1.1 and ours["noise"] < 1, row
    rounded = [row["ways"] for row in rows if row["ways"]["Load LoRA"]["noise"] > 0.05]
    assert any(ways["our nodes"]["noise"] < 0.01 for ways in rounded), "nothing is rounded: the board says nothing"


def test_our_nodes_erase_in_every_format_as_in_bf16():
    """By pictures. The stock bypass loader, which applies nothing of a trained eraser, leaves the concept in all."""
    drawn = [row for row in REPORT["rows"] if row["strength"] == 1]
    plain = {row["eraser"]: row["ways"]["our nodes"]["acc_e"] for row in drawn if row["base"] == "bf16"}
    assert len(plain) == 2 and all(rate < 0.5 for rate in plain.values())
    for row in drawn:
        assert row["ways"]["our nodes"]["acc_e"] <= plain[row["eraser"]] + 0.05, row
        if row["ways"]["Load LoRA (Bypass)"]["kept"] == 0:
            assert row["ways"]["Load LoRA (Bypass)"]["acc_e"] == 1


def test_the_page_is_that_of_the_file():
    assert (FOLDER / "survival.md").read_text(encoding="utf-8") == markdown(REPORT)


def test_a_stored_cell_is_one_that_is_measured():
    """Of the base that is loaded as it is."""
    found = board(["fp8 e4m3"], lambda pipeline: {"Erase Now": erased_now(pipeline)})
    stored = [row for row in REPORT["rows"] if row["eraser"] == "Erase Now" and row["base"] == "fp8 e4m3"]
    assert [row["strength"] for row in found] == [row["strength"] for row in stored]
    for one, other in zip(found, stored, strict=True):
        for way, cell in other["ways"].items():
            assert one["ways"][way] == pytest.approx(cell, abs=0.05), way
