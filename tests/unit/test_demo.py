"""What the repository's demo/report.json says, and that it reaches the marks of the demo."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RATES = {"before", "after", "n", "low", "high"}


@pytest.fixture(scope="module")
def report() -> dict:
    """As committed, where there is a repository: the file itself may be of somebody's own, smaller run."""
    told = subprocess.run(["git", "show", "HEAD:demo/report.json"], cwd=ROOT, capture_output=True)
    return json.loads(told.stdout if told.returncode == 0 else (ROOT / "demo" / "report.json").read_bytes())


def test_it_says_what_was_done_and_how(report):
    assert all(report[name] for name in ("concept", "train_seconds", "judge", "seeds", "command", "commit"))
    assert report["command"].startswith("python scripts/dev.py demo")
    for part in (report, *report["more"]):
        for cells in (part, *part["judges"].values()):
            for name in ("acc_e", "acc_g", "acc_ir"):
                cell = cells[name]
                assert RATES <= set(cell) and 0 <= cell["low"] <= cell["after"] <= cell["high"] <= 1, (part, name)


def test_it_reaches_the_marks_by_both_judges(report):
    """At least 40 pictures a cell, five minutes; with --more all have the same marks but for the time."""
    assert report["train_seconds"] <= 300
    for part in (report, *report["more"]):
        for cells in part["judges"].values():
            assert min(cell["n"] for cell in cells.values()) >= 40
            assert cells["acc_e"]["after"] <= 0.15 and cells["acc_g"]["after"] <= 0.25, part["concept"]
            assert cells["acc_ir"]["after"] >= 0.95 * cells["acc_ir"]["before"], part["concept"]
        assert {name: part[name] for name in part["judges"]["oracle"]} == part["judges"][report["judge"]]
