"""Runs the tests of every family of models and writes down what they show: benchmarks/families.json and families.md.

    python scripts/dev.py families

A cell is true where its test passes, else the reason. `python scripts/dev.py bench families` counts cost and memory of
published models at true size; what nobody has counted is null.
"""

import json
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from eraseanything_core.comfy_bridge.families.refused import REASONS
from eraseanything_core.files import write_atomic
from lab.provenance import ROOT, commit

FOLDER = "tests/comfy/families"
# A cell and the test that shows it; `{}` is the family.
CELLS = {
    "exact": "test_family_gradients.py::test_gradient_equals_finite_differences[{}-plain]",
    "exact_recomputed": "test_family_gradients.py::test_gradient_equals_finite_differences[{}-recomputed]",
    "probe": "test_family_columns.py::test_columns_are_those_of_the_full_softmax[{}]",
    "file_loads_stock": "test_family_training.py::test_the_stock_loader_gives_what_the_adapters_give[{}]",
    "resumes": "test_family_training.py::test_a_stopped_run_goes_on_to_the_same_bits[{}]",
    "model_untouched": "test_family_training.py::test_the_node_trains[{}]",
}
PRESETS = ("quick", "balanced", "thorough")
ABOUT_COUNTS = """Counted on shapes and not run: `python scripts/dev.py bench families`. A pair is one of the presets',
in the steady state at 512 px. A run of a preset includes looks and the text encoder. The peak is that of a pair at
1024 px, with weights, optimiser and recomputed blocks; q4 is 4.5 bits a weight. Two and three blocks of each kind
are counted and extended to all, since blocks of a kind are alike. Models of videos are counted with one frame, as
they are trained.
"""
NOT_COUNTED = "no model of this class is counted at true size"
COUNTED = "counted"  # the test that holds the numbers is named in `COUNTS`
COUNTS = "test_family_costs.py::test_what_is_stored_is_what_is_counted[{}]"
JSON = ROOT / "benchmarks" / "families.json"
HEAD = """# Families of models

`python scripts/dev.py families` runs the tests below on a small random model of every family and writes this page.
FLUX.1 is trained by a shorter road to the same bits; its tests are in `tests/comfy/training`. Random models prove
gradients, files and nodes. They do not prove that a concept is erased.
"""


def outcomes() -> dict[str, str]:
    """Every test of the families by its name: empty where it passed, else the first line of its message."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest.main(["-q", "-n", "0", f"--junitxml={report}", str(ROOT / FOLDER)])
        tree = ElementTree.parse(report)
    found = {}
    for case in tree.iter("testcase"):
        file = case.attrib["classname"].rpartition(".")[2]
        problems = [child.attrib.get("message", child.tag) for child in case if child.tag in ("failure", "error")]
        found[f"{file}.py::{case.attrib['name']}"] = problems[0].splitlines()[0] if problems else ""
    return found


def table(found: dict[str, str], counted: dict[str, Any]) -> dict[str, Any]:
    """What the tests have shown, by family, with what was counted for published models."""
    families = sorted({name.partition("[")[2].rstrip("]") for name in found if "test_the_node_trains[" in name})
    rows: dict[str, Any] = {}
    for family in families:
        row: dict[str, Any] = {}
        for cell, test in CELLS.items():
            problem = found.get(test.format(family), "there is no such test")
            row[cell] = problem or True
        rows[family] = row | numbers(family, counted)
    return {
        "command": "python scripts/dev.py families",
        "commit": commit(),
        "tests": {cell: f"{FOLDER}/{test}" for cell, test in CELLS.items()},
        "families": rows,
        "counted": counted,
        "refused": REASONS,
    }


def numbers(family: str, counted: dict[str, Any]) -> dict[str, Any]:
    """Cost and memory of the published models of a small model's class, by their names; null where none is counted."""
    models = {name: model for name, model in counted.items() if model["small"] == family}
    if not models:
        return {"tflop_pair": None, "peak_gib": None, "reason": NOT_COUNTED}
    return {
        "tflop_pair": {name: model["tflop_pair"] for name, model in models.items()},
        "peak_gib": {name: model["peak_gib"] for name, model in models.items()},
        "reason": COUNTED,
    }


def shown(number: Any) -> str:
    """A number of the table of costs, empty where it is not counted."""
    return "" if number is None else f"{number:g}"


def costs(counted: dict[str, Any]) -> list[str]:
    """The table of published models."""
    lines = ["## At true size", "", ABOUT_COUNTS]
    peaks = ("bf16 1024", "fp8 1024", "q4 1024")
    head = ["model", "parameters", "TFLOP a pair", *(f"PFLOP `{preset}`" for preset in PRESETS)]
    head += [f"GiB {peak.split()[0]}" for peak in peaks] + ["MiB an eraser"]
    lines += [f"| {' | '.join(head)} |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for name, model in counted.items():
        row = [name, f"{model['parameters'] / 1e9:.2f} B", shown(model["tflop_pair"])]
        row += [shown((model["pflop"] or {}).get(preset)) for preset in PRESETS]
        row += [shown((model["peak_gib"] or {}).get(peak)) for peak in peaks] + [shown(model["eraser_mib"])]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def markdown(result: dict[str, Any]) -> str:
    """The table for people: a cell holds the name of the test that shows it, or the reason why it is not shown."""
    whole = sum(all(row[cell] is True for cell in CELLS) for row in result["families"].values())
    lines = [HEAD, *costs(result["counted"]), "## Tests", ""]
    lines += [f"{whole} of {len(result['families'])} families are whole.", ""]
    lines += [f"| family | {' | '.join(CELLS)} | memory counted |", "| --- " * (len(CELLS) + 2) + "|"]
    for family, row in result["families"].items():
        cells = []
        for cell, test in CELLS.items():
            shown = test.format(family).partition("::")[2]
            cells.append(f"`{shown}`" if row[cell] is True else str(row[cell]))
        of_memory = f"`{COUNTS.format(family).partition('::')[2]}`" if row["reason"] == COUNTED else row["reason"]
        lines.append(f"| {family} | {' | '.join(cells)} | {of_memory} |")
    lines += ["", "Refused by name:", "", "| class | reason |", "| --- | --- |"]
    lines += [f"| `{name}` | {reason} |" for name, reason in result["refused"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the tests and writes both files; 1 where a cell is not true."""
    counted = json.loads(JSON.read_text(encoding="utf-8")).get("counted", {}) if JSON.exists() else {}
    result = table(outcomes(), counted)
    write_atomic(JSON, (json.dumps(result, indent=1) + "\n").encode())
    write_atomic(ROOT / "benchmarks" / "families.md", markdown(result).encode())
    return int(any(row[cell] is not True for row in result["families"].values() for cell in CELLS))


if __name__ == "__main__":
    sys.exit(main())
