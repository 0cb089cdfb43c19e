"""What training costs on models of other families, counted at true size and not run.

    python scripts/dev.py bench families

Writes `tflop_pair`, `peak_gib` and the rest of `counted` into benchmarks/families.json, and the tables of families.md.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from eraseanything_core.files import write_atomic
from eraseanything_core.protocols import GIB
from eraseanything_core.training.plan import Plan
from eraseanything_core.training.trajectory_cache import Epoch
from lab.bench.flops import COSTED, PETA, TERA, Priced, run_cost
from lab.bench.memory import BASES, first_epoch, tracked
from lab.bench.true_families import (
    FEW,
    SIZES,
    Blocks,
    FamilyShapes,
    at_full_depth,
    parameters,
    text_flops,
    true_model,
)
from lab.bench.true_size import counted, true_config
from lab.measurements.families import markdown, numbers
from lab.provenance import BENCHMARKS, commit

CASES = {"bf16 1024": ("bf16", 1024), "fp8 1024": ("fp8", 1024), "q4 1024": ("q4", 1024), "fp8 512": ("fp8", 512)}
# Of the peak with blocks recomputed, in GiB.
GOALS = {("Z-Image", "fp8 1024"): 10.0, ("Qwen-Image", "fp8 1024"): 24.0, ("Qwen-Image", "q4 1024"): 16.0}


class Walk(NamedTuple):
    """What a run of a preset asks of a model.

    Attributes:
        calls: forwards by cause and kind.
        steady: the student's forwards in all pairs but the first, by kind.
        pairs: of the run.
        encoded: prompts.
    """

    calls: Counter
    steady: Counter
    pairs: int
    encoded: int


def flops(name: str) -> dict[str, Any]:
    """TFLOP of a pair in the steady state, and PFLOP of a whole run of each preset, looks and text included."""
    # What is asked of a model does not depend on its depth: the runs are walked once, and their forwards priced anew.
    model = Priced(False, partial(true_model, name, dict.fromkeys(SIZES[name].depths, FEW)))
    walks = {preset: walked(name, preset, model) for preset in COSTED}

    def measure(blocks: Blocks) -> dict[str, float]:
        prices = prices_of(name, blocks, model.asked)
        spent = {}
        for preset, walk in walks.items():
            spent[preset] = sum(number * prices[kind] for (_, kind), number in walk.calls.items())
        quick = walks["quick"]
        pairs = sum(number * prices[kind] for kind, number in quick.steady.items())
        return spent | {"pair": pairs / (quick.pairs - 1)}

    spent = at_full_depth(name, measure)
    text = text_flops(name)
    return {
        "tflop_pair": round(spent["pair"] / TERA, 1),
        "pflop": {preset: round((spent[preset] + walk.encoded * text) / PETA, 1) for preset, walk in walks.items()},
    }


def walked(name: str, preset: str, model: Priced) -> Walk:
    """A run of a preset on a model without prices."""
    model.calls.clear()
    run = run_cost(preset, 0, text=FamilyShapes(name), model=model)
    return Walk(model.calls.copy(), model.steady(), run["pairs"], run["forwards"]["text"])


def prices_of(name: str, blocks: Blocks, asked: Mapping[Any, tuple]) -> dict[Any, int]:
    """FLOPs of every kind of forward on a model of so many blocks."""
    config = true_config("quick")
    model = Priced(False, partial(true_model, name, blocks))
    model.attach(config.targets, config.rank, torch.Generator())
    return {kind: counted(partial(model.once, *arguments)) for kind, arguments in asked.items()}


@cache
def begun(name: str, pixels: int) -> tuple[Plan, Epoch]:
    """A run of the quick preset up to its first pair, for models of any depth."""
    priced = Priced(False, partial(true_model, name, dict.fromkeys(SIZES[name].depths, FEW)))
    return first_epoch(true_config("quick", pixels), FamilyShapes(name), priced)


def peak(name: str, case: str, blocks: Blocks) -> int:
    """Bytes of the peak over a pair of a model of so many blocks, weights included, blocks recomputed."""
    base, pixels = CASES[case]
    make = partial(true_model, name, blocks, *BASES[base], device="cpu")
    return tracked(make, *begun(name, pixels), checkpoint=True)[0]


def peaks(name: str) -> dict[str, float]:
    """GiB by format and size of the picture."""

    def measure(blocks: Blocks) -> dict[str, float]:
        return {case: peak(name, case, blocks) / GIB for case in CASES}

    return {case: round(value, 2) for case, value in at_full_depth(name, measure).items()}


def eraser_mib(name: str) -> float:
    """Of the tensors in the file of an eraser of rank 8 with the presets' targets."""
    config = true_config("quick")
    lora = true_model(name, {}).attach(config.targets, config.rank, torch.Generator())
    return sum(parameter.numel() * 2 for parameter in lora.parameters()) / 2**20


def counts(name: str) -> dict[str, Any]:
    """All that is counted for a published model."""
    return {
        "family": SIZES[name].family,
        "small": SIZES[name].small,
        "parameters": parameters(name),
        "text_tokens": SIZES[name].tokens,
        **flops(name),
        "peak_gib": peaks(name),
        "eraser_mib": round(eraser_mib(name), 2),
    }


def count(names: Sequence[str]) -> None:
    """Counts published models and writes each one's numbers at once; the table for people follows."""
    for name in names:
        found = counts(name)
        print(name, json.dumps(found), flush=True)
        store({name: found | {"commit": commit()}})


def store(found: dict[str, Any]) -> None:
    """Writes numbers of published models into both files."""
    path = BENCHMARKS / "families.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["counted"] = table.get("counted", {}) | found
    for family, row in table["families"].items():
        row |= numbers(family, table["counted"])
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "families.md", markdown(table).encode())
