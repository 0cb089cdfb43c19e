"""What the checks found, as a file for programs and a page for people."""

import dataclasses
import json
import re
from pathlib import Path

from lab.gpu.checks import CHECKS
from lab.gpu.outcome import Figure, Outcome
from lab.provenance import BENCHMARKS, commit, write_report

FOLDER = BENCHMARKS / "gpu"


def file_name(card: str) -> str:
    """A card's name as every file system takes it."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") or "card"


def report(facts: dict[str, str], command: str, outcomes: dict[int, Outcome], before: dict) -> dict:
    """All that was found, and where it comes from.

    Args:
        facts: of the card.
        command: that was given.
        outcomes: by the number of the check.
        before: the report that is there, or {}. Its other checks stay, where the card says the same of itself.
    """
    at = commit()
    checks = dict(before["checks"]) if before.get("card") == facts else {}
    for number, outcome in outcomes.items():
        told = {"title": CHECKS[number].title, "state": outcome.state, "commit": at}
        checks[str(number)] = {**told, **dataclasses.asdict(outcome)}
    checks = dict(sorted(checks.items(), key=lambda item: int(item[0])))
    seconds = sum(check["seconds"] for check in checks.values())
    return {"command": command, "commit": at, "card": facts, "seconds": seconds, "checks": checks}


def page(found: dict) -> str:
    """The report as Markdown."""
    lines = [f"# {found['card']['card']}", "", f"`{found['command']}` at {found['commit']}.", ""]
    lines += [f"{len(found['checks'])} of {len(CHECKS)} checks took {found['seconds']:.0f} s.", ""]
    lines += ["| # | check | state | s | at |", "| --- | --- | --- | ---: | --- |"]
    for number, check in found["checks"].items():
        told = (number, check["title"], check["state"], f"{check['seconds']:.0f}", check["commit"])
        lines.append(f"| {' | '.join(told)} |")
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


def write(facts: dict[str, str], command: str, outcomes: dict[int, Outcome], folder: Path = FOLDER) -> Path:
    """Writes both; returns the page. Checks of an earlier report of the same card that did not run now stay in it."""
    path = folder / file_name(facts["card"])
    there = path.with_name(path.name + ".json")
    before = json.loads(there.read_text(encoding="utf-8")) if there.exists() else {}
    found = report(facts, command, outcomes, before)
    write_report(path, found, page(found))
    return path.with_name(path.name + ".md")
