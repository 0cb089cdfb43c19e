"""Reports on disk: JSON for programs, Markdown for people and a chart, side by side under one name."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from .. import files
from ..quoting import escaped, quoted
from . import charts
from .report import Report, from_json, to_json
from .report_text import markdown


def save_report(report: Report, chart: Tensor, folder: Path, name: str) -> Path:
    """Writes name.json, name.md and name.png into a folder; files of the same name are replaced.

    Args:
        report: the report.
        chart: its picture [1, h, w, 3].
        folder: where to; it is made if there is none.
        name: a plain file name.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: the name is no plain file name, or the folder cannot be written to.
    """
    path = files.writable_path(folder, name, ".json")
    # Three whole files, each renamed into its place: a report that is read meanwhile is the old one or the new one.
    files.write_atomic(path, to_json(report).encode())
    files.write_atomic(path.with_suffix(".md"), markdown(report).encode())
    files.write_atomic(path.with_suffix(".png"), charts.png(chart))
    return path


def report_paths(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The report files of a folder whose names match a pattern, sorted.

    Args:
        folder: of the reports.
        patterns: names without ending, in which * stands for any text.

    Raises:
        ValueError: a pattern is no plain file name, so that nothing outside the folder can be read.
    """
    paths: set[Path] = set()
    for pattern in patterns:
        # A star is no plain character of a file name.
        files.check_name(pattern.replace("*", "x"), ".json", "the report name")
        paths |= set(folder.glob(f"{pattern}.json"))
    return sorted(paths)


def load_reports(
    folder: Path, patterns: Sequence[str], check_interrupt: Callable[[], None] | None = None
) -> list[Report]:
    """The reports of `report_paths`; `check_interrupt` is called before each, and what it raises ends the reading.

    Raises:
        ValueError: there is none, or a file is no report; the message names the file.
    """
    paths = report_paths(folder, patterns)
    if not paths:
        names = escaped(" or ".join(patterns))
        raise ValueError(f"there is no report {names} in {folder}: save one with Erasure Report")
    reports = []
    for path in paths:
        if check_interrupt:
            check_interrupt()
        try:
            reports.append(from_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{quoted(path.name)} is no report of Erasure Report: {error}") from error
    return reports
