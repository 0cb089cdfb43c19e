"""Several reports together: interference between concepts, erasing against keeping, averages with intervals."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

from ..quoting import quoted
from . import metrics
from .report import SCORES, Gap, Rate, Report
from .report_text import gap_text


class Interference(TypedDict):
    """What erasing each concept (rows) left of every other (columns); None where it was not measured."""

    erased: list[str]
    measured: list[str]
    cells: list[list[float | None]]


class ParetoPoint(TypedDict):
    """One report: `erased` is 1 - acc_e and `kept` is acc_ir."""

    concept: str
    strength: float
    erased: Rate
    kept: Rate


def interference(reports: Sequence[Report]) -> Interference:
    """What erasing each concept left of every other, from acc_e and acc_ir.

    Of several strengths of one concept the one nearest to 1 counts.
    """
    rows: dict[str, dict[str, Rate]] = {}
    # Later reports overwrite earlier ones, so the strength nearest to 1 comes last.
    for report in sorted(reports, key=lambda report: -abs(report.strength - 1)):
        for name in ("acc_e", "acc_ir"):
            if name not in report.cells:
                continue
            for label, (_, after) in report.cells[name].labels.items():
                rows.setdefault(report.concept, {})[label] = after
    # Erased concepts first, in the order of the rows, so that the diagonal shows what erasing did to each.
    columns = dict.fromkeys(rows)
    cells = []
    for row in rows.values():
        columns |= dict.fromkeys(row)
    for row in rows.values():
        cells.append(_row(row, list(columns)))
    return {"erased": list(rows), "measured": list(columns), "cells": cells}


def _row(rates: Mapping[str, Rate], columns: Sequence[str]) -> list[float | None]:
    """The rates in the order of the columns; None, not 0, where nothing was measured."""
    return [rates[name].value if name in rates else None for name in columns]


def pareto_points(reports: Sequence[Report]) -> list[ParetoPoint]:
    """Points of erasing against keeping, ordered by concept and strength.

    Raises:
        ValueError: a report without acc_ir.
    """
    points: list[ParetoPoint] = []
    for report in sorted(reports, key=lambda report: (report.concept, report.strength)):
        if "acc_ir" not in report.cells:
            raise ValueError(
                f"the report of {quoted(report.concept)} has no cell acc_ir: nothing says what was preserved"
            )
        shown = report.cells["acc_e"].after
        # Erased is the opposite of shown, so the ends of its interval change places.
        low, value, high = shown.numbers()
        erased = Rate(value=1 - value, n=shown.n, low=1 - high, high=1 - low)
        preserved = report.cells["acc_ir"].after
        points.append({"concept": report.concept, "strength": report.strength, "erased": erased, "kept": preserved})
    return points


def macro(
    reports: Sequence[Report], draws: int = 2000, check_interrupt: Callable[[], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Averages over the erased concepts, of reports at strength 1, with intervals that draw concepts, then pictures.

    Args:
        reports: of any strengths; those of another strength than 1 are left out.
        draws: of the bootstrap.
        check_interrupt: called between parts of the work; what it raises ends it.

    Returns:
        {"acc_e", "acc_ir", "acc_g", "h_c", "h_o": {"value", "low", "high", "concepts", "change": after - before}}.
        What some report lacks is left out.

    Raises:
        ValueError: two reports of one concept at strength 1, or reports of different judges.
    """
    # At another strength a report says how the dial works, not how good the eraser is.
    full_strength = [report for report in reports if report.strength == 1.0]
    if len({report.concept for report in full_strength}) < len(full_strength):
        raise ValueError("two reports of one concept at strength 1: name only one of them")
    if len({report.judge["name"] for report in full_strength}) > 1:
        raise ValueError("the reports were read by different judges: name those of one")
    cells = _shared_cells(full_strength)
    averages = {}
    # Concepts are drawn first, because the pictures of one concept fail or succeed together.
    for name, (statistic, used) in _statistics(list(cells)).items():
        own = {cell: cells[cell] for cell in used}
        interval = partial(metrics.clustered_bootstrap, own, draws=draws, check_interrupt=check_interrupt)
        after = interval(metrics.after_erasing(statistic))
        change = interval(metrics.change_of(statistic))
        averages[name] = {**after, "concepts": len(full_strength), "change": change}
    return averages


def _shared_cells(reports: Sequence[Report]) -> dict[str, list[list[tuple[bool, bool]]]]:
    """The cells that all reports have: for each concept its pictures, as (shown before, shown after)."""
    cells = {}
    for name in ("acc_e", "acc_ir", "acc_g"):
        if not reports or any(name not in report.cells for report in reports):
            continue
        pairs = []
        for report in reports:
            cell = report.cells[name]
            pairs.append(list(zip(cell.shown_before, cell.shown_after)))
        cells[name] = pairs
    return cells


def _statistics(cells: Sequence[str]) -> dict[str, tuple[metrics.Statistic, tuple[str, ...]]]:
    """Every rate, and every harmonic mean whose cells are there, with the cells that each is computed from."""
    statistics: dict[str, tuple[metrics.Statistic, tuple[str, ...]]] = {}
    for cell in cells:
        statistics[cell] = (metrics.rate_of(cell), (cell,))
    for score, (function, used) in SCORES.items():
        if set(used) <= set(cells):
            statistics[score] = (metrics.of_rates(function), used)
    return statistics


def macro_markdown(averages: Mapping[str, Mapping[str, Any]]) -> str:
    """The averages as a Markdown table; "" when there are none."""
    if not averages:
        return ""
    lines = [
        "| average over concepts | after (95 % interval) | change (paired) | concepts |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, average in averages.items():
        after = f"{average['value']:.3f} ({average['low']:.3f} to {average['high']:.3f})"
        lines.append(f"| `{name}` | {after} | {gap_text(Gap(**average['change']))} | {average['concepts']} |")
    return "\n".join([*lines, ""])
