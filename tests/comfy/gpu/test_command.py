"""The command: what it prints, what it writes, and what becomes of a check that fails."""

import json

import pytest
import torch

from lab.gpu import __main__ as command
from lab.gpu import checks, report
from lab.gpu.card import NO_CARD, Card
from lab.gpu.outcome import Outcome
from scripts.dev import COMMANDS

CPU = Card(torch.device("cpu"), tiny=True)


def test_it_is_a_command_of_the_entry():
    module, text = COMMANDS["gpu"]
    assert module == "lab.gpu" and "card" in text


def test_all_checks_of_the_table_are_there():
    assert list(checks.CHECKS) == list(range(18))


def test_one_sentence_where_there_is_no_card(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_card", lambda asked: None)
    assert command.main(["--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{NO_CARD}\n" and not list(tmp_path.iterdir())


@pytest.fixture
def two_checks(monkeypatch):
    """One that passes and one that raises."""

    def passes(card):
        outcome = Outcome()
        outcome.at_most("error", 1e-5, 1e-4)
        return outcome

    def raises(card):
        raise RuntimeError("CUDA error")

    monkeypatch.setitem(checks.CHECKS, 0, checks.Check("one that passes", passes))
    monkeypatch.setitem(checks.CHECKS, 1, checks.Check("one that raises", raises))


def test_a_report_says_what_was_found_and_where_it_comes_from(two_checks, capsys, tmp_path):
    arguments = ["--device", "cpu", "--only", "0", "1", "17", "--into", str(tmp_path)]
    assert command.main(arguments) == 1
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["command"] == "python scripts/dev.py gpu " + " ".join(arguments)
    assert found["commit"] and found["card"]["torch"] == torch.__version__
    states = {number: check["state"] for number, check in found["checks"].items()}
    assert states == {"0": "passed", "1": "failed", "17": "skipped"}
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| 0 | one that passes | passed |" in page and "- error: 1e-05" in page
    assert "- **RuntimeError: CUDA error**" in page and "There is no second card." in page
    assert "1  one that raises: failed" in capsys.readouterr().out


def test_a_check_runs_in_a_process_of_its_own():
    outcome = command.in_own_process(9, CPU)
    assert outcome.skipped == "DynamicVRAM needs an Nvidia card." and outcome.state == "skipped"


def test_the_name_of_a_card_is_that_of_a_file(monkeypatch):
    monkeypatch.setattr(Card, "name", "NVIDIA GeForce RTX 4090 / 24 GB")
    assert report.file_name(CPU) == "nvidia-geforce-rtx-4090-24-gb"


def test_not_a_number_is_no_pass():
    outcome = Outcome()
    outcome.at_most("error", float("nan"), 1)
    outcome.at_least("cosine", float("nan"), 0)
    assert len(outcome.problems) == 2 and outcome.state == "failed"
