"""The command: what it prints, what it writes, and what becomes of a check that fails."""

import json

import pytest
import torch

from lab.gpu import __main__ as command
from lab.gpu import checks, processes, report
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
    seconds = sum(check["seconds"] for check in found["checks"].values())
    assert found["seconds"] == seconds and f"3 of 18 checks took {seconds:.0f} s." in page
    out = capsys.readouterr().out
    assert "1  one that raises: failed" in out and "      error: 1e-05" in out  # the figures of check 0


def test_some_checks_leave_what_others_have_found(two_checks, monkeypatch, tmp_path):
    def run(*numbers):
        command.main(["--device", "cpu", "--into", str(tmp_path), "--only", *numbers])
        (path,) = tmp_path.glob("*.json")
        return json.loads(path.read_text(encoding="utf-8"))["checks"]

    monkeypatch.setattr(report, "commit", lambda: "first")
    run("1")
    monkeypatch.setattr(report, "commit", lambda: "second")
    found = run("0")
    assert {number: (check["state"], check["commit"]) for number, check in found.items()} == {
        "0": ("passed", "second"),
        "1": ("failed", "first"),
    }
    assert list(found) == ["0", "1"]
    # What was found with another PyTorch is of another report.
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert list(run("0")) == ["0"]


def test_what_was_found_is_written_before_the_next_check_runs(two_checks, monkeypatch, tmp_path):
    def crashes(card):
        raise SystemExit(139)

    monkeypatch.setitem(checks.CHECKS, 2, checks.Check("one that ends the process", crashes))
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "--into", str(tmp_path), "--only", "0", "2"])
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["checks"]["0"]["state"] == "passed"


def test_after_an_error_that_stays_the_others_run_in_processes_of_their_own(two_checks, monkeypatch, tmp_path):
    """CUDA refuses everything then, and a card that is lost says no name."""
    alive = [True]

    def breaks(card):
        alive[0] = False
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def refused(card):
        assert alive[0], "a card that is lost is asked for something"

    facts = Card.facts
    monkeypatch.setattr(Card, "answers", lambda card: alive[0])
    monkeypatch.setattr(Card, "collect", refused)
    monkeypatch.setattr(Card, "facts", lambda card: refused(card) or facts(card))
    monkeypatch.setattr(command, "in_own_process", lambda number, card: Outcome(figures={"process": "own"}))
    monkeypatch.setitem(checks.CHECKS, 2, checks.Check("one that breaks the card", breaks))
    assert command.main(["--device", "cpu", "--into", str(tmp_path), "--only", "0", "2", "3"]) == 1
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))["checks"]
    assert [check["state"] for check in found.values()] == ["passed", "failed", "passed"]
    assert found["3"]["figures"] == {"process": "own"}


def test_a_check_runs_in_a_process_of_its_own():
    outcome = processes.in_own_process(9, CPU)
    assert outcome.skipped == "DynamicVRAM needs an Nvidia card." and outcome.state == "skipped"
    assert outcome.seconds > 1  # that PyTorch and ComfyUI take to start


def test_a_process_that_dies_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(processes, "COMMAND", "import os; os._exit(139)")
    outcome = processes.in_own_process(1, CPU)
    assert outcome.problems == ["the check ended its process with code 139"]


def test_the_name_of_a_card_is_that_of_a_file():
    assert report.file_name("NVIDIA GeForce RTX 4090 / 24 GB") == "nvidia-geforce-rtx-4090-24-gb"


def test_not_a_number_is_no_pass():
    outcome = Outcome()
    outcome.at_most("error", float("nan"), 1)
    outcome.at_least("cosine", float("nan"), 0)
    assert len(outcome.problems) == 2 and outcome.state == "failed"
