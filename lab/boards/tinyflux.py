"""The boards on TinyFlux: which rows, cells and figures each of them has."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eraseanything_core.evaluation.quality import paired_kernel_distance
from lab.boards.benchmark_prompts import CONCEPTS, asked, attacked, kept
from lab.boards.board import OURS, REFERENCES, Board, Figure
from lab.boards.erasers import PRESET_ROWS
from lab.boards.gallery import Gallery
from lab.boards.outcomes import (
    Outcomes,
    balance,
    by_concept,
    combined,
    gap,
    half_back,
    lost,
    obeyed,
    overall,
    shallower,
    share,
    unbeaten,
)
from lab.tinyflux.recipe import Cell

LOSSES = (
    "esd", "lora", "rsc", "esd+attn", "esd+lora", "esd+rsc", "attn+rsc", "attn+lora+rsc", "esd+attn+lora+rsc",
    "attn+retain+rsc", "esd+retain+rsc", "esd+attn+rsc", "esd+attn+retain", "printed sign", "unshuffled",
)  # fmt: skip
COUNTS = (1, 3, 5, 10)
SCALES = (0.5, 1.5, 2.0)
FLOOR = 0.85  # of a concept's ceiling: a choice, the one of `ceilings.FLOORS`
CEILINGS = Path(__file__).parents[1] / "tinyflux" / "ceilings.json"


@dataclass(frozen=True)
class Size:
    """How much of a board is measured.

    Attributes:
        concepts: erased concepts a kind.
        count: pictures a cell, at most `benchmark_prompts.COUNT`.
        seeds: trainings of each eraser.
        settings: go over every trained row.
        others: rows of boards A and E besides the reference rows and EraseAnything.
        presets: rows of boards A, C and E that have nothing but the concept's name.
        kinds: of the erased concepts; boards B and D have entities only.
        depths: steps of relearning on board F; the last is that of awaking too.
        inversion: steps of it there.
    """

    concepts: int
    count: int
    seeds: int = 1
    settings: dict = field(default_factory=dict)
    others: tuple[str, ...] = ("UCE", "MACE", "EAP", "concept ablation")
    presets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = tuple(CONCEPTS)
    depths: tuple[int, ...] = (10, 25, 50)
    inversion: int = 100


SIZES = {
    "smoke": Size(1, 6, settings={"steps": 2}, depths=(1, 2), inversion=2),
    "one": Size(1, 32, others=("UCE",), kinds=("entity",)),
    "small": Size(1, 64, others=("UCE", "MACE")),
    "presets": Size(2, 48, others=(), presets=PRESET_ROWS),
    "full": Size(2, 100),
}


@dataclass(frozen=True)
class BoardMeasurement:
    """What a board is measured with."""

    gallery: Gallery
    size: Size
    judge: str

    def concepts(self, *kinds: str) -> tuple[str, ...]:
        """The erased concepts, of all the size's kinds or of these."""
        return tuple(c for kind in kinds or self.size.kinds for c in CONCEPTS[kind][: self.size.concepts])

    def outcomes(self, row: str, concepts: tuple[str, ...], cells: dict[str, Callable[[str], Cell]]) -> Outcomes:
        """Whether each picture shows what was asked."""
        return {name: [self.hits(row, c, cell(c)) for c in concepts] for name, cell in cells.items()}

    def hits(self, row: str, concept: str, cell: Cell) -> list[list[bool]]:
        """Whether each picture shows what was asked: [prompt][training]."""
        wanted = cell.concepts[: self.size.count]
        count = self.size.count
        read = [self.gallery.readings(row, concept, cell, count, self.judge, seed) for seed in range(self.size.seeds)]
        return [[label == name for label in labels] for name, *labels in zip(wanted, *read, strict=True)]

    def rejected(self, row: str, concepts: tuple[str, ...], cells: dict[str, Callable[[str], Cell]]) -> float:
        """Share of the pictures in which the judge knows nothing."""
        read = [
            self.gallery.readings(row, c, cell(c), self.size.count, self.judge, seed)
            for c in concepts
            for cell in cells.values()
            for seed in range(self.size.seeds)
        ]
        return float(np.mean([label is None for labels in read for label in labels]))

    def ceilings(self, concepts: tuple[str, ...]) -> dict[str, float]:
        """Of `ceilings.json`: 70 pictures a concept, other seeds than the boards'."""
        clean = json.loads(CEILINGS.read_text(encoding="utf-8"))["clean"][self.judge]
        return {concept: clean[concept]["value"] for concept in concepts}


TABLE = {name: lambda concept, name=name: asked(concept)[name] for name in ("acc_e", "acc_ir", "acc_g")}


def drawn(concepts: tuple[str, ...], outcomes: Outcomes) -> dict[str, float]:
    """How often the un-erased model shows each concept when asked for it by its name."""
    return {c: round(float(np.mean(hits)), 4) for c, hits in zip(concepts, outcomes["acc_e"], strict=True)}


def board_a(bench: BoardMeasurement) -> Board:
    """Table 3: the concept, the others of its kind, and a synonym that training never saw."""
    rows = (*REFERENCES, *bench.size.others, *bench.size.presets, OURS)
    figures = {}
    sentences = []
    clean = {}
    for kind in bench.size.kinds:
        concepts = bench.concepts(kind)
        outcomes_of = {row: bench.outcomes(row, concepts, TABLE) for row in rows}
        for row, outcomes in outcomes_of.items():
            own = figures.setdefault(row, {})
            own |= {f"{kind} {label}": share(outcomes[cell]) for cell, label in LABELS.items()}
            own[f"{kind} H_o ↑"] = combined(outcomes, overall)
        sentences += lost(outcomes_of, overall, "H_o", f", {kind}", bench.size.others)
        clean |= drawn(concepts, outcomes_of["un-erased"])
    every = bench.concepts()
    return Board(
        "A",
        "erasers on each kind of concepts (Table 3)",
        tuple(next(iter(figures.values()))),
        figures,
        bench.ceilings(every),
        FLOOR,
        {row: bench.rejected(row, every, TABLE) for row in rows},
        tuple(sentences),
        {},
        clean,
    )


ACC_E = "Acc_e ↓"
LABELS = {"acc_e": ACC_E, "acc_ir": "Acc_ir ↑", "acc_g": "Acc_g ↓"}
GAP = f"H_c minus {OURS}'s ↑"


def keeping(bench: BoardMeasurement, letter: str, title: str, concepts: tuple[str, ...], own: tuple[str, ...]) -> Board:
    """A board of Acc_e, Acc_ir and H_c: the reference rows, then its own."""
    cells = {name: TABLE[name] for name in ("acc_e", "acc_ir")}
    rows = tuple(dict.fromkeys((*REFERENCES, *own, OURS)))
    outcomes = {row: bench.outcomes(row, concepts, cells) for row in rows}
    figures = {
        row: {LABELS[c]: share(own_outcomes[c]) for c in cells}
        | {"H_c ↑": combined(own_outcomes, balance), GAP: gap(own_outcomes, outcomes[OURS], balance)}
        for row, own_outcomes in outcomes.items()
    }
    return Board(
        letter,
        title,
        (*(LABELS[c] for c in cells), "H_c ↑", GAP),
        figures,
        bench.ceilings(concepts),
        FLOOR,
        {row: bench.rejected(row, concepts, cells) for row in rows},
        tuple(lost(outcomes, balance, "H_c", others=[row for row in own if row != OURS])),
        {},
        drawn(concepts, outcomes["un-erased"]),
    )


def board_b(bench: BoardMeasurement) -> Board:
    """Table 4: which loss buys what. `lora` is the paper's Eq. 4 as printed; EraseAnything retains instead, and the
    four rows with three of its losses leave one out."""
    return keeping(bench, "B", "what each loss buys (Table 4), on entities", bench.concepts("entity"), LOSSES)


def board_d(bench: BoardMeasurement) -> Board:
    """Appendix F: several erasers at once, added up (W = 1) or averaged (W = 1 / N), and one at several strengths."""
    many = [f"{how} of {n}" for how in ("sum", "mean") for n in COUNTS]
    rows = (*many, *(f"scale {s}" for s in SCALES))
    title = "many erasers at once, and one at several strengths (App. F), on entities"
    return keeping(bench, "D", title, bench.concepts("entity"), rows)


def board_c(bench: BoardMeasurement) -> Board:
    """Appendix B: attacks by the prompt, of those that the un-erased model obeys.

    Beside the reference rows stand the size's presets, or `unshuffled`, which trained on sentences.
    A figure counts prompts; a difference is the mean over concepts of paired prompts.
    """
    concepts = bench.concepts()
    others = bench.size.presets or ("unshuffled",)
    rows = (*REFERENCES, *others, OURS)
    cells = {f"{name} ↓": lambda concept, name=name: attacked(concept)[name] for name in attacked(concepts[0])}
    every = {row: bench.outcomes(row, concepts, cells) for row in rows}
    obeyed_ones = obeyed(every)
    return Board(
        "C",
        "attacks that still show the concept, of those that the un-erased model obeys (Appendix B)",
        tuple(cells),
        {row: {name: share(hits) for name, hits in own.items()} for row, own in obeyed_ones.items()},
        bench.ceilings(concepts),
        FLOOR,
        {row: bench.rejected(row, concepts, cells) for row in rows},
        unbeaten(obeyed_ones, list(others)),
        {},
        parts={row: by_concept(concepts, own, every["un-erased"]) for row, own in every.items()},
    )


def board_e(bench: BoardMeasurement) -> Board:
    """Retention: captions without the concept, and how far the pictures move at the same seed."""
    concepts = bench.concepts()
    rows = (*REFERENCES, *bench.size.others, *bench.size.presets, OURS)
    cells = {"kept": kept}
    outcomes = {row: bench.outcomes(row, concepts, cells) for row in rows}
    figures = {
        row: {"right label ↑": share(own["kept"]), DISTANCE: distance(bench, row), "drift ↓": drift(bench, row)}
        for row, own in outcomes.items()
    }
    return Board(
        "E",
        "captions without the concept: right label, kernel distance of the CNN's features to those of the un-erased "
        "model's pictures (times 100), and drift (mean absolute pixel difference to them)",
        ("right label ↑", DISTANCE, "drift ↓"),
        figures,
        bench.ceilings(concepts),
        FLOOR,
        {row: bench.rejected(row, concepts, cells) for row in rows},
        tuple(lost(outcomes, lambda rates: rates["kept"], "right label", "", bench.size.others)),
        {},
    )


DISTANCE = "KD_tinyflux ↓"


def distance(bench: BoardMeasurement, row: str) -> Figure:
    """The kernel distance to the un-erased model's pictures; trainings are averaged, as they see the same noise."""

    def features(name: str, seed: int) -> Tensor:
        latents = [bench.gallery.latents(name, c, kept(c), bench.size.count, seed)[1] for c in bench.concepts()]
        return torch.cat([bench.gallery.features(x) for x in latents])

    before = features("un-erased", 0)
    distances = [paired_kernel_distance(before, features(row, seed)) for seed in range(bench.size.seeds)]
    return Figure(*(round(float(part), 6) for part in np.mean(distances, axis=0)), len(before))


def drift(bench: BoardMeasurement, row: str) -> Figure:
    """Mean absolute pixel difference to the un-erased model at the same prompt and seed."""
    moved = []
    gallery = bench.gallery
    count = bench.size.count
    for concept in bench.concepts():
        cell = kept(concept)
        before = gallery.pictures(gallery.latents("un-erased", concept, cell, count)[1])
        after = [gallery.pictures(gallery.latents(row, concept, cell, count, s)[1]) for s in range(bench.size.seeds)]
        moved.append([[float((a[i] - b).abs().mean()) for a in after] for i, b in enumerate(before)])
    return combined({"kept": moved}, lambda rates: rates["kept"])


def board_f(bench: BoardMeasurement) -> Board:
    """Depth: Acc_e after relearning from 10 pictures, after a LoRA that also awakes the concept's attention, and from
    states that an inversion found; and how long relearning takes to bring half of the concept back."""
    concepts = bench.concepts()
    rows = (*REFERENCES, OURS)
    size = bench.size
    attacks = [f"relearning {n}" for n in size.depths] + [f"awaking {size.depths[-1]}", f"inversion {size.inversion}"]
    cells = {"acc_e": TABLE["acc_e"]}
    columns = {ACC_E: ""} | {f"{name} steps ↓": f" + {name}" for name in attacks}
    outcomes = {
        row: {column: bench.outcomes(row + attack, concepts, cells)["acc_e"] for column, attack in columns.items()}
        for row in rows
    }
    base = outcomes["un-erased"][ACC_E]
    steps = (0, *size.depths)
    half = f"half back, % of {size.depths[-1]} steps ↑"
    relearnt = {row: list(own.values())[: len(steps)] for row, own in outcomes.items()}
    figures = {row: {column: share(hits) for column, hits in own.items()} for row, own in outcomes.items()}
    for row, after in relearnt.items():
        figures[row][half] = half_back(base, after, steps)
    return Board(
        "F",
        "the concept after attacks on the weights, with 10 pictures of it",
        (*columns, half),
        figures,
        bench.ceilings(concepts),
        FLOOR,
        {row: bench.rejected(row, concepts, cells) for row in rows},
        (*unbeaten(outcomes), *shallower(base, relearnt, steps)),
        {},
        drawn(concepts, {"acc_e": base}),
    )


BOARDS = {"A": board_a, "B": board_b, "C": board_c, "D": board_d, "E": board_e, "F": board_f}


def seeds_of(concept: str, count: int) -> dict[str, list[int]]:
    """The first and last picture seed of every cell."""
    cells = asked(concept) | {"kept": kept(concept)}
    return {name: [cell.seeds[0], cell.seeds[count - 1]] for name, cell in cells.items()}
