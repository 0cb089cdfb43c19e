"""benchmarks/families.json says no more than the tests beside this file can show."""

import json
from pathlib import Path

import pytest

from eraseanything_core.comfy_bridge.families.linears import TRAINED
from eraseanything_core.comfy_bridge.families.refused import REASONS
from eraseanything_core.comfy_bridge.families.table import LAYOUTS
from lab.bench.true_families import SIZES
from lab.measurements.families import CELLS, NOT_COUNTED, markdown, numbers
from tests.comfy.families import test_family_columns, test_family_costs, test_family_gradients, test_family_training
from tests.comfy.families.small import FAMILIES

TABLE = json.loads((Path(__file__).parents[3] / "benchmarks" / "families.json").read_text(encoding="utf-8"))
FILES = {
    "test_family_columns.py": test_family_columns,
    "test_family_gradients.py": test_family_gradients,
    "test_family_training.py": test_family_training,
}


def families_of(test):
    """The families that a test is run on."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] == "name"]
    return set(marks[0].args[1])


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_shown_by_a_test_that_runs(cell):
    file, _, name = CELLS[cell].partition("::")
    test = getattr(FILES[file], name.partition("[")[0])
    said = {family for family, row in TABLE["families"].items() if row[cell] is True}
    assert said <= families_of(test)
    assert not [mark for mark in test.pytestmark if mark.name in ("skip", "xfail")]
    others = {family: row[cell] for family, row in TABLE["families"].items() if row[cell] is not True}
    assert all(isinstance(reason, str) and reason for reason in others.values()), others


def test_figures_are_those_of_published_models_or_null_with_the_reason():
    for family, row in TABLE["families"].items():
        assert {name: row[name] for name in ("tflop_pair", "peak_gib", "reason")} == numbers(family, TABLE["counted"])
        assert (row["peak_gib"] is None) == (row["reason"] == NOT_COUNTED), family
        assert row["peak_gib"] is None or family in families_of(
            test_family_costs.test_what_is_stored_is_what_is_counted
        )


def test_the_page_is_that_of_the_file():
    page = (Path(__file__).parents[3] / "benchmarks" / "families.md").read_text(encoding="utf-8")
    assert page == markdown(TABLE)


@pytest.mark.parametrize("name", TABLE["counted"])
def test_the_readme_has_what_was_counted(name):
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    model = TABLE["counted"][name]
    cells = [f"{model['peak_gib'][f'{base} 1024']:g} GiB" for base in ("bf16", "fp8", "q4")]
    cells += [f"{model['pflop']['quick']:g} PFLOP", f"{model['eraser_mib']:g} MiB"]
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| {name} (")]
    assert row.split(" | ")[1:] == [*cells[:-1], f"{cells[-1]} |"]


def test_every_model_that_has_a_true_size_is_counted():
    assert set(TABLE["counted"]) == set(SIZES)
    assert all(model["tflop_pair"] and model["pflop"] and model["peak_gib"] for model in TABLE["counted"].values())


def test_every_class_is_trained_or_refused_with_the_reason():
    assert set(TABLE["families"]) == set(FAMILIES)
    assert set(TRAINED) | set(REASONS) == set(LAYOUTS) and not set(TRAINED) & set(REASONS)
    assert TABLE["refused"] == REASONS
