"""What the checks found, as a file for programs and a page for people."""

import dataclasses
import re
from pathlib import Path

from lab.gpu.card import Card
from lab.gpu.checks import CHECKS
from lab.gpu.outcome import Figure, Outcome
from lab.provenance import BENCHMARKS, commit, write_report

FOLDER = BENCHMARKS / "gpu"


def file_name(card: Card) -> str:
    """A name of the card that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-") or "card"


def report(card: Card, command: str, outcomes: dict[int, Outcome]) -> dict:
    """All that was found, and where it comes from."""
    checks = {}
    for number, outcome in outcomes.items():
        checks[str(number)] = {"title": CHECKS[number].title, "state": outcome.state, **dataclasses.asdict(outcome)}
    return {"command": command, "commit": commit(), "card": card.facts(), "checks": checks}


def page(found: dict) -> str:
    """The report as Markdown."""
    lines = [f"# {found['card']['card']}", "", f"`{found['command']}` at {found['commit']}.", ""]
    lines += ["| # | check | state | s |", "| --- | --- | --- | ---: |"]
    for number, check in found["checks"].items():
        lines.append(f"| {number} | {check['title']} | {check['state']} | {check['seconds']:.0f} |")
    for number, check in found["checks"].items():
        lines += ["", f"## {number}. {check['title']}", ""]
        if check["skipped"]:
            lines.append(check["skipped"])
        lines += [f"- **{problem}**" for problem in check["problems"]]
        lines += [f"- {name}: {shown(value)}" for name, value in check["figures"].items()]
    return "\n".join([*lines, ""])


def shown(value: Figure) -> str:
    """A figure for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(card: Card, command: str, outcomes: dict[int, Outcome], folder: Path = FOLDER) -> Path:
    """Writes both; returns the page."""
    found = report(card, command, outcomes)
    path = folder / file_name(card)
    write_report(path, found, page(found))
    return path.with_name(path.name + ".md")
