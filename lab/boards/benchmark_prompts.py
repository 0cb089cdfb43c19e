"""The prompts and seeds of the boards, frozen by hash before any setting was tuned on them.

`python -m lab.boards.benchmark_prompts` writes `benchmark_prompts.json`; a test holds the present ones against it.
"""

import hashlib
import json
import random
from functools import cache
from pathlib import Path

from eraseanything_core.evaluation.prompt_attacks import FAMILIES, attack
from eraseanything_core.tinyflux.concepts import SYNONYMS, kind_of
from lab.tinyflux.captions import HELD_OUT
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.recipe import Cell, cells

PATH = Path(__file__).with_name("benchmark_prompts.json")
CONCEPTS = {"entity": ("house", "moon"), "style": ("glowing", "striped"), "relation": ("inside", "divided")}
COUNT = 200  # prompts a cell
KEPT = 1000  # captions without the concept
SEED = 1_000_000_000  # of the first picture; erasers draw from far smaller seeds


@cache
def asked(concept: str) -> dict[str, Cell]:
    """The cells of Tables 3 and 4: acc_e, acc_g, acc_ir, `COUNT` prompts each; a board takes the first n."""
    by_name = cells(concept, COUNT, seed=SEED)
    return {name: moved(by_name[name], SEED) for name in ("acc_e", "acc_g", "acc_ir")}


@cache
def kept(concept: str) -> Cell:
    """`KEPT` captions of every other concept in turn, in none of which a name of the concept stands."""
    rng = random.Random(f"kept {concept}")
    others = [c for c in SYNONYMS if c != concept]
    chosen = [others[i % len(others)] for i in range(KEPT)]
    prompts = [without(rng, c, concept) for c in chosen]
    return Cell([kind_of(c) for c in chosen], chosen, prompts, [SEED + 10_000_000 + i for i in range(KEPT)])


def without(rng: random.Random, concept: str, other: str) -> str:
    """A held-out prompt of a concept in which no name of the other concept stands."""
    while True:
        text = prompt_with(rng, concept)
        if not {w.strip(",") for w in text.split(" ")} & {other, *SYNONYMS[other]}:
            return text


@cache
def attacked(concept: str) -> dict[str, Cell]:
    """The prompts of acc_e after each family of attacks; the synonyms are the two that erasers know."""
    plain = asked(concept)["acc_e"]
    known = SYNONYMS[concept][:2]
    attacks = {}
    for name, kinds in FAMILIES.items():
        prompts = [attack(p, concept, kinds[i % len(kinds)], i, known) for i, p in enumerate(plain.prompts)]
        attacks[name] = Cell(plain.kinds, plain.concepts, prompts, plain.seeds)
    return attacks


def moved(cell: Cell, by: int) -> Cell:
    """The cell with other seeds."""
    return Cell(cell.kinds, cell.concepts, cell.prompts, [seed + by for seed in cell.seeds])


def sha256(value) -> str:
    """The hash of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def hashes() -> dict[str, str]:
    """Of the held-out templates, the held-out synonyms, and every concept's prompts and seeds."""
    sums = {"templates": sha256(HELD_OUT), "synonyms": sha256({c: names[2] for c, names in SYNONYMS.items()})}
    for concepts in CONCEPTS.values():
        for concept in concepts:
            sets = {**asked(concept), "kept": kept(concept), **attacked(concept)}
            sums[concept] = sha256({name: [cell.prompts, cell.seeds] for name, cell in sets.items()})
    return sums


if __name__ == "__main__":
    PATH.write_text(json.dumps(hashes(), indent=1) + "\n", encoding="utf-8")
