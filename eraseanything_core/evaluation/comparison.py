"""Several reports together: interference between concepts, erasing against keeping, averages with intervals."""

from collections.abc import Mapping, Sequence

from . import metrics
from .report import SCORES, Gap, Rate, Report, gap_text


def interference(reports: Sequence[Report]) -> dict:
    """What erasing each concept left of every other, from acc_e and acc_ir; of several strengths the one nearest to 1.

    Returns:
        {"erased", "measured", "cells"}: row names, column names, and rows of values or None.
    """
    rows: dict[str, dict[str, Rate]] = {}
    for report in sorted(reports, key=lambda r: -abs(r.strength - 1)):
        for name in ("acc_e", "acc_ir"):
            for label, (_, after) in (report.cells[name].labels if name in report.cells else {}).items():
                rows.setdefault(report.concept, {})[label] = after
    columns = list(dict.fromkeys([*rows, *(label for row in rows.values() for label in row)]))
    cells = [[row[name].value if name in row else None for name in columns] for row in rows.values()]
    return {"erased": list(rows), "measured": columns, "cells": cells}


def pareto(reports: Sequence[Report]) -> list[dict]:
    """Points of erasing against keeping over the strength, in its order.

    Returns:
        [{"concept", "strength", "erased": Rate of 1 - acc_e, "kept": Rate of acc_ir}].

    Raises:
        ValueError: a report without acc_ir.
    """
    points = []
    for report in sorted(reports, key=lambda r: (r.concept, r.strength)):
        if "acc_ir" not in report.cells:
            raise ValueError(f"the report of {report.concept!r} has no cell acc_ir: nothing says what is kept")
        shown, kept = report.cells["acc_e"].after, report.cells["acc_ir"].after
        erased = Rate(value=1 - shown.value, n=shown.n, low=1 - shown.high, high=1 - shown.low)
        points.append({"concept": report.concept, "strength": report.strength, "erased": erased, "kept": kept})
    return points


def macro(reports: Sequence[Report], draws: int = 2000) -> dict[str, dict]:
    """Averages over the erased concepts, of reports at strength 1, with intervals that draw concepts, then pictures.

    Returns:
        {"acc_e", "acc_ir", "acc_g", "h_c", "h_o": {"value", "low", "high", "concepts", "change": after - before}};
        what some report lacks is left out.

    Raises:
        ValueError: two reports of one concept at strength 1, or reports of different judges.
    """
    taken = [r for r in reports if r.strength == 1.0]
    if len({r.concept for r in taken}) < len(taken):
        raise ValueError("two reports of one concept at strength 1: name only one of them")
    if len({r.judge["name"] for r in taken}) > 1:
        raise ValueError("the reports were read by different judges: name those of one")
    shared = [name for name in ("acc_e", "acc_ir", "acc_g") if taken and all(name in r.cells for r in taken)]
    cells = {n: [list(zip(r.cells[n].shown_before, r.cells[n].shown_after)) for r in taken] for n in shared}
    wanted = {name: (lambda r, n=name: r[n], (name,)) for name in shared}
    wanted |= {n: (lambda r, s=score: s(**r), used) for n, (score, used) in SCORES.items() if set(used) <= set(shared)}
    found = {}
    for name, (statistic, used) in wanted.items():
        own = {cell: cells[cell] for cell in used}
        after = metrics.clustered_bootstrap(own, lambda r, f=statistic: f(metrics.column(r, 1)), draws)
        change = metrics.clustered_bootstrap(own, lambda r, f=statistic: metrics.gap(f, r), draws)
        found[name] = after | {"concepts": len(taken), "change": change}
    return found


def macro_markdown(found: Mapping[str, Mapping]) -> str:
    """The averages for people; "" when there is none."""
    if not found:
        return ""
    lines = [
        "| average over concepts | after (95 % interval) | change (paired) | concepts |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, value in found.items():
        after = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
        lines.append(f"| `{name}` | {after} | {gap_text(Gap(**value['change']))} | {value['concepts']} |")
    return "\n".join([*lines, ""])
