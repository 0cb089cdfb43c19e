"""The plan of a fleet: which concepts, by which methods, from which models, and which pictures are judged.

A plan is YAML; docs/fleet.md says what each field means.
"""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import files
from ..concepts.concept_set import CATEGORIES, ConceptSet
from ..concepts.prompts import words_of
from ..concepts.sampler import ConceptRequest, sample_offline
from ..evaluation.report import CELL_QUESTIONS
from ..lora.merge import FUSION, GATED, MODES
from ..quoting import quoted
from ..training.config import EraseConfig
from ..training.presets import PRESETS
from .direct_methods import DIRECT, check_direct_settings
from .methods import METHODS

DEFAULT_PRESET = "balanced"
SETTINGS = {field.name for field in dataclasses.fields(EraseConfig)} - {"concept", "seed"}
BASE_PARTS = ("model", "clip", "vae")


class Strict(BaseModel):
    """Refuses fields that a plan does not have: a misspelt one would be dropped without a word."""

    model_config = ConfigDict(extra="forbid")


class MethodPlan(Strict):
    """A method with its preset, and settings that go over those of the plan."""

    method: str = "eraseanything"
    preset: str = DEFAULT_PRESET
    settings: dict[str, Any] = {}


class PromptSetPlan(Strict):
    """A CSV of prompts, and the question of a report that it answers; `{}` in a prompt stands for the concept."""

    file: Path
    cell: str
    count: int = Field(default=0, ge=0)


class JudgePlan(Strict):
    """Who reads pictures; see `judge_choice.JudgeRequest`."""

    name: str
    labels: list[str] = []
    template: str = "{}"
    weights: str = ""
    threshold: float = 0.0


class PicturesPlan(Strict):
    """What is drawn and judged: every set by every base, without an eraser, with those of the plan, and with `files`.

    `rows` prompts are one job.
    """

    sets: dict[str, PromptSetPlan]
    judge: JudgePlan | None = None
    files: dict[str, Path] = {}
    width: int = Field(default=1024, ge=16, multiple_of=16)
    height: int = Field(default=1024, ge=16, multiple_of=16)
    steps: int = Field(default=20, ge=1)
    strength: float = 1.0
    rows: int = Field(default=32, ge=1)


class MergePlan(Strict):
    """How all erasers of one base and one method become one LoRA; the modes are those of *Multi Erase LoRA*."""

    mode: str = "concatenate"
    weight: float = 1.0
    rank: int = 0
    energy: float = 0.99
    density: float = 0.5


class WorkersPlan(Strict):
    """What each worker gets; `count` 0 is as many as there is room for."""

    count: int = Field(default=0, ge=0)
    gpus: float = Field(default=1.0, ge=0)
    cpus: float = Field(default=1.0, gt=0)
    retries: int = Field(default=20, ge=0)


class Plan(Strict):
    """A whole plan; files in it are relative to its own folder."""

    results: Path
    concepts: list[str] | Path
    bases: dict[str, dict[str, dict[str, dict[str, Any]]]]
    methods: dict[str, MethodPlan] = {"eraseanything": MethodPlan()}
    settings: dict[str, Any] = {}
    seeds: list[int] = [0]
    pictures: PicturesPlan | None = None
    merge: MergePlan | None = None
    workers: WorkersPlan = WorkersPlan()


def read_plan(path: Path) -> Plan:
    """The plan of a file.

    Raises:
        ValueError: it is no plan; the message names the field and says what it may be.
        OSError: the file cannot be read.
    """
    try:
        fields = yaml.safe_load(files.decode_text(path.read_bytes(), path.name))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, Mapping):
        raise ValueError(f"{path.name} is no plan: it must hold `results`, `concepts` and `bases`")
    plan = make_plan(fields, path.name)
    return _with_folder(plan, path.resolve().parent)


def make_plan(fields: Mapping[str, Any], name: str = "the plan") -> Plan:
    """A checked plan of plain values; `name` is what the user knows it by.

    Raises:
        ValueError: see `read_plan`.
    """
    try:
        plan = Plan.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{name}, {place}: {first['msg'].lower()}, and not {quoted(first['input'])}") from error
    try:
        _check(plan)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return plan


def _check(plan: Plan) -> None:
    """Raises ValueError for names that do not exist."""
    if not plan.concepts or not plan.bases or not plan.methods or not plan.seeds:
        raise ValueError("`concepts`, `bases`, `methods` and `seeds` must not be empty")
    _check_settings(plan.settings)
    for method in plan.methods.values():
        _one_of("the method", method.method, METHODS)
        if method.method in DIRECT:
            check_direct_settings(method.method, method.settings)
        else:
            _check_settings(method.settings)
        _one_of("the preset", method.preset, PRESETS)
    for name, base in plan.bases.items():
        if not {"model", "clip"} <= set(base) <= set(BASE_PARTS) or any(len(loader) != 1 for loader in base.values()):
            raise ValueError(f"the base {quoted(name)} needs `model` and `clip`, each with one loader node")
    if plan.merge:
        _one_of("the mode of `merge`", plan.merge.mode, (*MODES, FUSION, GATED))
    for prompt_set in (plan.pictures.sets if plan.pictures else {}).values():
        _one_of("the cell", prompt_set.cell, CELL_QUESTIONS)


def _one_of(what: str, name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"{what} {quoted(name)} is none of {', '.join(known)}")


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {quoted(name)}; docs/training.md lists them")


def _with_folder(plan: Plan, folder: Path) -> Plan:
    """The plan with its paths in a folder."""
    changed: dict[str, Any] = {"results": folder / plan.results}
    if isinstance(plan.concepts, Path):
        changed["concepts"] = folder / plan.concepts
    if plan.pictures:
        sets = {}
        for name, prompt_set in plan.pictures.sets.items():
            sets[name] = prompt_set.model_copy(update={"file": folder / prompt_set.file})
        erasers = {name: folder / path for name, path in plan.pictures.files.items()}
        changed["pictures"] = plan.pictures.model_copy(update={"sets": sets, "files": erasers})
    return plan.model_copy(update=changed)


def concept_sets(plan: Plan) -> list[ConceptSet]:
    """The words of every concept, each concept once.

    Raises:
        ValueError: the table has no column `concept`, or WordNet and the rules refuse a word.
    """
    requests = [ConceptRequest(word) for word in plan.concepts] if isinstance(plan.concepts, list) else []
    if isinstance(plan.concepts, Path):
        requests = _requests_of(plan.concepts)
    by_word = {" ".join(request.concept.split()): request for request in requests}
    return [sample_offline(request) for request in by_word.values()]


def _requests_of(path: Path) -> list[ConceptRequest]:
    """The concepts of a CSV with the columns `concept` and, where they are wanted, `category` and `synonyms`."""
    lines = files.decode_text(path.read_bytes(), path.name).splitlines()
    table = csv.DictReader(lines)
    if "concept" not in (table.fieldnames or ()):
        raise ValueError(f"{path.name} has no column `concept`")
    requests = []
    for row in table:
        category = (row.get("category") or "auto").strip()
        _one_of(f"{path.name}: the category", category, ("auto", *CATEGORIES))
        synonyms = tuple(words_of(row.get("synonyms") or ""))
        requests.append(ConceptRequest(row["concept"] or "", category, synonyms=synonyms))
    return requests
