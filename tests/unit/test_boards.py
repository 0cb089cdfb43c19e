"""Boards: what the writer refuses, and that erasers never train on what the boards ask."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from eraseanything_core.concepts.prompts import draw_retained, draw_sentence
from eraseanything_core.tinyflux.concepts import SYNONYMS
from lab.boards import benchmark_prompts
from lab.boards.board import REFERENCES, Board, Figure, check, markdown, write
from lab.tinyflux.captions import HELD_OUT
from lab.tinyflux.recipe import VALIDATION, erase_config

BOARDS = Path(__file__).resolve().parents[2] / "benchmarks" / "boards"
CONCEPTS = [c for found in benchmark_prompts.CONCEPTS.values() for c in found]
ABOUT = {"command": "c", "commit": "1", "judge": "cnn 1", "hashes": {"prompts": "x"}, "seeds": {"moon": [0, 1]}}


def board(**changes) -> Board:
    rows = {row: {"Acc_e": Figure(0.5, 0.4, 0.6, 100)} for row in (*REFERENCES, "EraseAnything")}
    rejects = dict.fromkeys(rows, 0.02) | {"destroy": 0.9}
    made = Board("A", "test", ("Acc_e",), rows, {"moon": 0.97}, 0.85, rejects, ("H_o: lost to ESD",), ABOUT)
    return replace(made, **changes)


@pytest.mark.parametrize("row", REFERENCES)
def test_a_board_without_a_reference_row_is_refused(row, tmp_path):
    rows = {name: figures for name, figures in board().rows.items() if name != row}
    with pytest.raises(ValueError, match=f"the row '{row}' is missing"):
        write(board(rows=rows), tmp_path, "A")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "figure", [Figure(0.5, 0.6, 0.7, 10), Figure(0.5, 0.4, 0.6, 0), Figure(0.5, float("nan"), 1, 9)]
)
def test_a_figure_without_an_interval_is_refused(figure):
    with pytest.raises(ValueError, match="'destroy' has no figure with an interval for 'Acc_e'"):
        check(board(rows=board().rows | {"destroy": {"Acc_e": figure}}))


def test_a_rate_without_width_is_refused():
    flat = board().rows | {"destroy": {"Acc_e": Figure(0.5, 0.5, 0.5, 100)}}
    with pytest.raises(ValueError, match="'destroy' has no figure with an interval for 'Acc_e'"):
        check(board(rows=flat))
    check(board(rows=board().rows | {row: {"Acc_e": Figure(v, v, v, 100)} for row, v in (("ESD", 0), ("no-op", -1))}))


def test_a_board_without_its_own_row_or_without_rejects_is_refused():
    with pytest.raises(ValueError, match="the row 'EraseAnything' is missing"):
        check(board(rows={row: f for row, f in board().rows.items() if row != "EraseAnything"}))
    with pytest.raises(ValueError, match="'ESD' has no share of rejected pictures"):
        check(board(rejects={row: v for row, v in board().rejects.items() if row != "ESD"}))


def committed(path) -> Board:
    """A board as it was written."""
    told = json.loads(path.read_text(encoding="utf-8"))
    rows = {row: {c: Figure(**f) for c, f in figures.items()} for row, figures in told["rows"].items()}
    return Board(**told | {"rows": rows, "columns": tuple(told["columns"]), "lost": tuple(told["lost"])})


@pytest.mark.parametrize("path", sorted(BOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_the_boards_in_the_repository_are_whole(path):
    found = committed(path)
    check(found)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(found)


def test_a_low_ceiling_and_an_untold_commit_are_refused():
    with pytest.raises(ValueError, match="the ceiling of 'star' is 0.74, under 0.85"):
        check(board(ceilings={"moon": 0.97, "star": 0.74}))
    with pytest.raises(ValueError, match="the ceiling of 'moon' in this board's pictures is 0.80, under 0.85"):
        check(board(drawn={"moon": 0.8}))
    with pytest.raises(ValueError, match="no ceilings"):
        check(board(ceilings={}))
    with pytest.raises(ValueError, match="'commit' is missing from `about`"):
        check(board(about=ABOUT | {"commit": ""}))


def test_what_is_written_holds_every_figure(tmp_path):
    path = write(board(), tmp_path, "A")
    assert json.loads(path.read_text())["rows"]["ESD"]["Acc_e"] == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    text = markdown(board())
    assert "| destroy | 50.0 (40.0 to 60.0) | 90.0 * |" in text and "| ESD | 50.0 (40.0 to 60.0) | 2.0 |" in text
    assert "Of 100 pictures an arm, 80 % power tells 19 points from 50 %, 12 from 5 %." in text
    assert "- H_o: lost to ESD" in text and (tmp_path / "A.md").read_text(encoding="utf-8") == text


def test_rates_by_concept_are_told_where_they_differ():
    parts = {"ESD": {"Acc_e": {"moon": 0.5, "house": 0.25}}, "no-op": {"Acc_e": {"moon": 1.0, "house": 1.0}}}
    found = board(parts=parts, ceilings={"moon": 0.97, "house": 1.0, "star": 0.9})
    lines = [line for line in markdown(found).splitlines() if line.startswith("| ESD |") or "no-op" in line]
    assert lines[-3:] == ["| ESD | moon | 50.0 |", "| ESD | house | 25.0 |", "| ESD | star |  |"]
    assert "By concept" not in markdown(board())


def test_the_prompts_and_seeds_are_those_that_were_frozen():
    assert benchmark_prompts.hashes() == json.loads(benchmark_prompts.PATH.read_text(encoding="utf-8"))


def test_no_setting_was_chosen_on_what_the_boards_erase():
    assert not set(VALIDATION) & set(CONCEPTS)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_training_touches_no_frozen_prompt_and_no_held_out_synonym(concept):
    asked = (
        benchmark_prompts.asked(concept)
        | benchmark_prompts.attacked(concept)
        | {"kept": benchmark_prompts.kept(concept)}
    )
    measured = {prompt for cell in asked.values() for prompt in cell.prompts}
    config, rng = erase_config(concept), random.Random(0)
    drawn = {p.text for _ in range(3000) for p in draw_sentence(config, rng).prompts()}
    drawn |= {draw_retained(config, rng).text for _ in range(1000)} | set(config.retain)
    assert not drawn & measured
    assert not any({"drawing", "there", "made", "that"} & set(text.split(" ")) for text in drawn)  # held-out templates
    assert not any(SYNONYMS[concept][2] in text.replace(",", "").split(" ") for text in drawn)


def test_a_changed_template_changes_the_hash(monkeypatch):
    monkeypatch.setitem(HELD_OUT, "single", ("a photo of a {thing} {ground}",))
    assert benchmark_prompts.hashes()["templates"] != json.loads(benchmark_prompts.PATH.read_text())["templates"]


def test_picture_seeds_are_out_of_the_reach_of_training():
    lowest = min(seed for c in CONCEPTS for cell in benchmark_prompts.asked(c).values() for seed in cell.seeds)
    assert (
        lowest >= benchmark_prompts.SEED > 3 * 1_000_003 + 10_000
    )  # (training seed * 1,000,003 + step) of three trainings
