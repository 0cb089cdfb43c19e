"""What training costs on models of other families, counted at true size and not run.

    python scripts/dev.py bench families

Writes `tflop_pair`, `peak_gib` and the rest of `counted` into benchmarks/families.json, and the tables of families.md.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from eraseanything_core.files import write_atomic
from eraseanything_core.protocols import GIB
from lab.bench.flops import COSTED, Priced, run_cost
from lab.bench.memory import BASES, first_epoch, tracked
from lab.bench.true_families import (
    SIZES,
    Blocks,
    FamilyShapes,
    at_full_depth,
    parameters,
    text_flops,
    true_model,
)
from lab.bench.true_size import true_config
from lab.measurements.families import markdown, numbers
from lab.provenance import BENCHMARKS, commit

CASES = {"bf16 1024": ("bf16", 1024), "fp8 1024": ("fp8", 1024), "q4 1024": ("q4", 1024), "fp8 512": ("fp8", 512)}
# Of the peak with blocks recomputed, in GiB.
GOALS = {("Z-Image", "fp8 1024"): 10.0, ("Qwen-Image", "fp8 1024"): 24.0, ("Qwen-Image", "q4 1024"): 16.0}


def flops(name: str) -> dict[str, Any]:
    """TFLOP of a pair in the steady state, and PFLOP of a whole run of each preset, looks and text included."""
    price = text_flops(name)

    def measure(blocks: Blocks) -> dict[str, float]:
        model = Priced(true=partial(true_model, name, blocks))
        runs = {}
        for preset in COSTED:
            model.spent.clear()
            runs[preset] = run_cost(preset, price, text=FamilyShapes(name), model=model)
        return {preset: run["pflop"] for preset, run in runs.items()} | {"pair": runs["quick"]["tflop_per_pair_steady"]}

    total = at_full_depth(name, measure)
    return {
        "tflop_pair": round(total.pop("pair"), 1),
        "pflop": {preset: round(value, 1) for preset, value in total.items()},
    }


def peak(name: str, case: str, blocks: Blocks) -> int:
    """Bytes of the peak over a pair of a model of so many blocks, weights included, blocks recomputed."""
    base, pixels = CASES[case]
    priced = Priced(False, partial(true_model, name, blocks))
    plan, epoch = first_epoch(true_config("quick", pixels), FamilyShapes(name), priced)
    make = partial(true_model, name, blocks, *BASES[base], device="cpu")
    return tracked(make, plan, epoch, checkpoint=True)[0]


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
        counted = counts(name)
        print(name, json.dumps(counted), flush=True)
        store({name: counted | {"commit": commit()}})


def store(counted: dict[str, Any]) -> None:
    """Writes numbers of published models into both files."""
    path = BENCHMARKS / "families.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["counted"] = table.get("counted", {}) | counted
    for family, row in table["families"].items():
        row |= numbers(family, table["counted"])
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())
    write_atomic(BENCHMARKS / "families.md", markdown(table).encode())
