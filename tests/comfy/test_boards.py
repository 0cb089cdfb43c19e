"""Every board, on outcomes that are known: the figures are the ones that were put in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx

from lab.boards.board import REFERENCES, check
from lab.boards.outcomes import by_concept, crossing, obeyed
from lab.boards.tinyflux import BOARDS, DISTANCE, GAP, LABELS, BoardMeasurement, Size

ABOUT = {"command": "c", "commit": "1", "judge": "cnn 1", "hashes": {"prompts": "x"}, "seeds": {"house": [0, 1]}}
HIDDEN = {"EraseAnything": 9, "ESD": 6, "UCE": 10}  # of ten pictures, those of the concept that show it no more


class Known:
    """A gallery whose judge sees what was asked, but for the first pictures of an erased concept."""

    def readings(self, row, concept, cell, count, judge, seed=0):
        asked = [name == concept for name in cell.concepts[:count]]
        hidden = [i < HIDDEN.get(row, 0) * count // 10 for i in range(count)]
        return [None if a and h else name for a, h, name in zip(asked, hidden, cell.concepts[:count])]

    def latents(self, row, concept, cell, count, seed=0):
        return row, torch.full((count, 3, 2, 2), 0.1 * (row == "EraseAnything"))

    def pictures(self, x):
        """As far from 0 as the latents in the mean, some nearer, some farther."""
        return x * torch.linspace(0.8, 1.2, len(x))[:, None, None, None]

    def features(self, x):
        """Rows whose product is 0, or nearly 0.1 times their length."""
        return x.flatten(1) * 10**0.5 * torch.linspace(0.999, 1.001, len(x))[:, None]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(BoardMeasurement, "ceilings", lambda self, concepts: dict.fromkeys(concepts, 0.97))
    return BoardMeasurement(Known(), Size(2, 20, seeds=3), "cnn")


@pytest.mark.parametrize("letter", list(BOARDS))
def test_every_board_is_whole_and_carries_the_reference_rows(letter, bench):
    board = replace(BOARDS[letter](bench), about=ABOUT)
    check(board)
    assert board.letter == letter and set(REFERENCES) | {"EraseAnything"} <= set(board.rows)
    without = {row: f for row, f in board.rows.items() if row != "ESD"}
    with pytest.raises(ValueError, match="the row 'ESD' is missing"):
        check(replace(board, rows=without))


def test_table_3_has_the_figures_that_were_put_in(bench):
    board = BOARDS["A"](bench)
    ours, base = board.rows["EraseAnything"], board.rows["un-erased"]
    assert (ours["entity Acc_e ↓"].value, ours["entity Acc_ir ↑"].value, ours["entity Acc_g ↓"].value) == approx(
        (0.1, 1, 0.1)
    )
    assert ours["style Acc_e ↓"].n == 2 * 20  # three trainings are no further pictures
    assert base["style Acc_e ↓"].value == 1 and base["style H_o ↑"].value == 0
    assert ours["relation H_o ↑"].value == approx(3 / (1 / 0.9 + 1 + 1 / 0.9))
    assert board.rejects["un-erased"] == 0 and board.rejects["EraseAnything"] == approx(0.6)
    assert len(board.lost) == 3 and all("'UCE'" in sentence for sentence in board.lost)  # only it hides more


def test_a_reference_row_that_wins_is_named(bench, monkeypatch):
    monkeypatch.setitem(HIDDEN, "prompt filter", 10)
    lost = BOARDS["A"](bench).lost
    named = [sentence for sentence in lost if "'prompt filter'" in sentence]
    assert len(named) == 3 and len(lost) == 6 and all("-" in sentence for sentence in lost)


def test_attacks_count_only_where_the_base_model_obeys(bench, monkeypatch):
    board = BOARDS["C"](bench)
    assert board.rows["EraseAnything"]["misspelling ↓"].value == approx(0.1)
    assert board.rows["attention map"]["misspelling ↓"].value == 1
    monkeypatch.setitem(HIDDEN, "un-erased", 5)  # it obeys the second half only, where one picture in five is hidden
    board = BOARDS["C"](bench)
    figure = board.rows["EraseAnything"]["misspelling ↓"]
    assert figure.n == 6 * 10 and figure.value == approx(0.2)
    assert {row["synonym ↓"].n for row in board.rows.values()} == {60}
    parts = board.parts["EraseAnything"]["misspelling ↓"]
    assert parts == dict.fromkeys(board.ceilings, 0.2) and len(parts) == 6


def test_attacks_compare_the_same_prompts(bench, monkeypatch):
    """80 and 90 % of the same pictures are told apart, though the rates' own intervals (14 to 28, 6 to 17) overlap."""
    monkeypatch.setitem(HIDDEN, "unshuffled", 9)
    monkeypatch.setitem(HIDDEN, "prompt filter", 8)
    board = BOARDS["C"](bench)
    ours, theirs = (board.rows[row]["affix ↓"] for row in ("EraseAnything", "prompt filter"))
    assert ours.high > theirs.low
    assert board.lost == tuple(
        f"share not shown, {name} ↓: EraseAnything minus 'unshuffled' is 0.0 (0.0 to 0.0)"
        for name in ("misspelling", "affix", "repetition", "synonym", "shuffle", "look")
    )
    monkeypatch.setitem(HIDDEN, "ESD", 10)
    lost = [sentence for sentence in BOARDS["C"](bench).lost if "'ESD'" in sentence]
    assert len(lost) == 6 and all("EraseAnything minus 'ESD' is -10.0 (-" in sentence for sentence in lost)


def test_a_concept_whose_attacks_the_base_model_never_obeys_is_left_out():
    found = {row: {"a": [[[True], [False]], [[False], [False]]]} for row in ("un-erased", "ESD")}
    found["ESD"]["a"][0][0] = [False]
    assert obeyed(found) == {"un-erased": {"a": [[[True]]]}, "ESD": {"a": [[[False]]]}}
    assert by_concept(("moon", "house"), found["ESD"], found["un-erased"]) == {"a": {"moon": 0.0}}


def test_drift_is_the_distance_to_the_un_erased_pictures(bench):
    board = BOARDS["E"](bench)
    assert board.rows["EraseAnything"]["drift ↓"].value == approx(0.1)
    assert board.rows["no-op"]["drift ↓"].value == board.rows["no-op"][DISTANCE].value == 0
    assert board.rows["EraseAnything"][DISTANCE].value == approx(1.1**3 + 1 - 2, abs=1e-3)  # (0.1 + 1)^3 + 1 - 2


def test_losses_and_columns_of_table_4(bench):
    board = BOARDS["B"](bench)
    assert board.columns == (LABELS["acc_e"], LABELS["acc_ir"], "H_c ↑", GAP)
    assert board.rows["EraseAnything"][GAP].value == 0 and board.drawn == {"house": 1.0, "moon": 1.0}
    assert board.rows["ESD"][GAP].value == approx(2 / (1 / 0.6 + 1) - 2 / (1 / 0.9 + 1), abs=1e-6)
    for row in ("esd+attn", "esd+lora", "esd+rsc", "attn+rsc", "attn+lora+rsc", "esd+attn+lora+rsc", "esd", "lora"):
        assert row in board.rows
    assert not board.lost  # no row hides as much


def test_rows_of_a_boards_own_that_are_not_beaten_are_named(bench, monkeypatch):
    monkeypatch.setitem(HIDDEN, "unshuffled", 9)
    assert BOARDS["B"](bench).lost == ("H_c: EraseAnything minus 'unshuffled' is 0.0 (0.0 to 0.0)",)
    monkeypatch.setitem(HIDDEN, "scale 2.0", 10)
    (sentence,) = BOARDS["D"](bench).lost
    assert sentence.startswith("H_c: EraseAnything minus 'scale 2.0' is -5.3 (")


def test_half_is_back_where_the_line_crosses_it():
    """Of 40 steps: 1 before, 0.2 erased, so 0.6 is half; never, at once, and between two checks."""
    steps = (0, 10, 20, 40)
    rates = np.array([[1, 0.2, 0.2, 0.5, 0.7], [1, 0.2, 0.3, 0.3, 0.5], [0.9, 0.9, 0.9, 1, 1], [1, 0.2, 0.8, 0.4, 0.8]])
    assert crossing(rates, steps) == approx([0.75, 1, 0, (10 * 0.4 / 0.6) / 40])
    assert crossing(rates, steps, 0) == approx([0.5, 1, 0, 0]) and crossing(rates, steps, 1) == approx([1, 1, 0, 0.25])


def test_depth_is_told_with_what_lies_between_two_checks(bench, monkeypatch):
    """Half of what EraseAnything erased (9 of 10) is back between 25 and 50 steps, and of ESD (6 of 10) before 10."""
    for attack, hidden in (("relearning 10", 8), ("relearning 25", 6), ("awaking 50", 3), ("inversion 100", 5)):
        monkeypatch.setitem(HIDDEN, f"EraseAnything + {attack}", hidden)
    board = BOARDS["F"](bench)
    ours, esd, half = board.rows["EraseAnything"], board.rows["ESD"], board.columns[-1]
    assert [ours[column].value for column in board.columns[:-1]] == approx([0.1, 0.2, 0.4, 1, 0.7, 0.5])
    assert half == "half back, % of 50 steps ↑" and ours[half].value == approx((25 + 25 * 0.15 / 0.6) / 50)
    assert ours[half].low <= 25 / 50 and ours[half].high == 1
    assert (esd[half].value, esd[half].low, esd[half].high) == approx((5 / 50, 0, 10 / 50))
    assert not [sentence for sentence in board.lost if "half back" in sentence and "'ESD'" in sentence]
    monkeypatch.setitem(HIDDEN, "ESD + relearning 10", 6)
    assert [s for s in BOARDS["F"](bench).lost if s.startswith("half back: EraseAnything minus 'ESD' is ")]
