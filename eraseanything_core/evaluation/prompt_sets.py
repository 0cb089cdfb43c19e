"""Prompt sets as CSV in the format of I2P: a prompt, a seed and a guidance a row, and what it shall show."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ..concepts.concept_set import ConceptSet
from ..concepts.prompts import fill

PROMPT = ("prompt", "adv_prompt")
SEED = ("seed", "evaluation_seed", "sd_seed")
GUIDANCE = ("guidance", "evaluation_guidance", "sd_guidance_scale")
LABEL = ("label", "concept", "class")


@dataclass(frozen=True)
class PromptRow:
    """One picture to make; label is "" where the file says nothing of what it shall show."""

    prompt: str
    seed: int
    guidance: float
    label: str = ""


def read(text: str, guidance: float = 3.5) -> list[PromptRow]:
    """The rows of a CSV text with a header.

    Args:
        text: has a column `prompt`; `seed`, `guidance` and `label` may be missing, and the names that I2P and its
            derivates use for them are known. A missing seed is the row's number.
        guidance: where the file gives none.

    Raises:
        ValueError: no prompt column, no rows, an empty prompt, or a seed or guidance that is no number.
    """
    table = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    columns = {name: _column(table.fieldnames or [], known) for name, known in
               (("prompt", PROMPT), ("seed", SEED), ("guidance", GUIDANCE), ("label", LABEL))}  # fmt: skip
    if columns["prompt"] is None:
        raise ValueError(f"the prompt set has no column `prompt`; its columns are: {', '.join(table.fieldnames or [])}")
    rows = [_row(number, row, columns, guidance) for number, row in enumerate(table)]
    if not rows:
        raise ValueError("the prompt set has no rows below its header")
    return rows


def asking(concepts: ConceptSet, guidance: float = 3.5) -> list[PromptRow]:
    """The prompts of a concept set, labelled with its concept; the seed is the row's number.

    Raises:
        ValueError: it has no prompts.
    """
    if not concepts.prompts:
        raise ValueError(f"the set of {concepts.concept!r} has no prompts: add some, or take them from Concept Sampler")
    filled = [fill(prompt, concepts.concept) for prompt in concepts.prompts]
    return [PromptRow(prompt, seed, guidance, concepts.concept) for seed, prompt in enumerate(filled)]


def _column(names: list[str], known: tuple[str, ...]) -> str | None:
    return next((name for want in known for name in names if name.strip().lower() == want), None)


def _row(number: int, row: dict, columns: dict[str, str | None], guidance: float) -> PromptRow:
    told = {name: (row.get(column) or "").strip() if column else "" for name, column in columns.items()}
    if not told["prompt"]:
        raise ValueError(f"row {number + 1} of the prompt set has no prompt")
    try:
        seed, strength = int(told["seed"] or number), float(told["guidance"] or guidance)
    except ValueError as error:
        raise ValueError(f"row {number + 1} of the prompt set: {error}") from error
    return PromptRow(told["prompt"], seed, strength, told["label"])


def write(rows: list[PromptRow]) -> str:
    """The rows as CSV, readable by `read`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["prompt", "seed", "guidance", "label"])
    table.writerows([row.prompt, row.seed, row.guidance, row.label] for row in rows)
    return text.getvalue()


def fingerprint(prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """The hash of what was asked, for the report."""
    return hashlib.sha256("\n".join(f"{seed} {prompt}" for prompt, seed in zip(prompts, seeds)).encode()).hexdigest()
