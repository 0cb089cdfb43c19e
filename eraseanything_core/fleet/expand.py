"""From a plan to its jobs: concepts x methods x bases x seeds are trained, prompt sets x erasers are drawn."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..concepts.concept_set import ConceptSet
from ..erasers.registry import method_of, settings_of
from ..evaluation.prompt_sets import PromptRow, read_table
from ..lora.merge import FUSION
from ..quoting import quoted
from ..training.config import check_settings
from ..training.presets import run_config
from . import direct_methods
from .job import DRAW, FUSE, TRAIN, Job
from .plan import MethodPlan, PicturesPlan, Plan, PromptSetPlan
from .training_job import plain_config

SAVE_EVERY = 25  # pairs between two saved states, where no settings say otherwise


@dataclass(frozen=True)
class PictureShares:
    """The jobs that draw one prompt set, without an eraser and with one, share by share.

    Attributes:
        cell: the question that the set answers.
        rows: all of its prompts.
        before, after: jobs in the order of the rows.
    """

    cell: str
    rows: list[PromptRow]
    before: list[Job]
    after: list[Job]


@dataclass(frozen=True)
class Eraser:
    """One eraser of a plan, and what is drawn with it.

    Attributes:
        concept: what it erases.
        method, base, seed: of its training; the method of a file is the file's name in the plan.
        training: its job; None for a LoRA file.
        file: that file; None for a training.
        shares: by the name of the prompt set.
    """

    concept: str
    method: str
    base: str
    seed: int
    training: Job | None = None
    file: Path | None = None
    shares: dict[str, PictureShares] = field(default_factory=dict)


def known_base(loaders: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """A base as a job holds it: the loaders, and the hashes of the files that they name."""
    return {"loaders": dict(loaders), "files": dict(digests)}


def training_jobs(plan: Plan, words: list[ConceptSet], digests: Mapping[str, Mapping[str, str]]) -> list[Eraser]:
    """The erasers that a plan trains.

    Args:
        plan: the plan.
        words: of its concepts.
        digests: of every base's files.

    Raises:
        ValueError: settings that cannot work; the message names the concept and the method.
    """
    erasers = []
    for base, loaders in plan.bases.items():
        known = known_base(loaders, digests[base])
        for method in plan.methods:
            for concept in words:
                for seed in plan.seeds:
                    job = _training_job(plan, known, method, concept, seed, base)
                    erasers.append(Eraser(concept.concept, method, base, seed, job))
    return erasers


def _training_job(plan: Plan, base: dict[str, Any], name: str, concept: ConceptSet, seed: int, base_name: str) -> Job:
    method = plan.methods[name]
    label = f"{concept.concept}, {name}, {base_name}, seed {seed}"
    try:
        if method.method in direct_methods.DIRECT:
            spec = _direct_spec(plan, method, concept, seed)
        else:
            config = _config(plan, method, concept, seed)
            spec = {"method": config["method"], "config": config}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label}: {error}") from error
    return Job(TRAIN, label, {"base": base, **spec}, {})


def _direct_spec(plan: Plan, method: MethodPlan, concept: ConceptSet, seed: int) -> dict[str, Any]:
    """What decides an eraser that is not trained in pairs: the set, from which a worker makes its configuration."""
    name = method.method
    settings = direct_methods.shared_settings(name, plan.settings) | method.settings
    direct_methods.config_of(name, concept, settings, seed)
    return {"method": name, "concept": json.loads(concept.to_json()), "settings": settings, "seed": seed}


def _config(plan: Plan, method: MethodPlan, concept: ConceptSet, seed: int) -> dict[str, Any]:
    given = {"method": method.method, **_with_tuples(plan.settings), **_with_tuples(method.settings)}
    own = dict(given.get("method_settings", ()))
    typed = {"save_every": SAVE_EVERY, **settings_of(given["method"], own), **given, "seed": seed}
    if "irrelevant" in typed:
        typed["tiers"] = ()  # they are those of the words that are replaced
    config = run_config(concept.settings(), method.preset, typed)
    check_settings(config)
    method_of(config)
    return plain_config(config)


def merge_groups(erasers: Sequence[Eraser]) -> dict[tuple[str, str, int], list[Eraser]]:
    """The trained erasers that become one LoRA, by base, method and seed."""
    groups: dict[tuple[str, str, int], list[Eraser]] = {}
    for eraser in erasers:
        if eraser.training:
            groups.setdefault((eraser.base, eraser.method, eraser.seed), []).append(eraser)
    return groups


def fusion_jobs(plan: Plan, erasers: Sequence[Eraser]) -> dict[tuple[str, str, int], Job]:
    """The jobs of a plan that asks for closed-form fusion, by base, method and seed; of any other plan none."""
    if plan.merge is None or plan.merge.mode != FUSION:
        return {}
    jobs = {}
    for (base, method, seed), group in merge_groups(erasers).items():
        trainings = [eraser.training for eraser in group if eraser.training]
        spec = {
            "base": trainings[0].spec["base"],
            "trainings": [training.id for training in trainings],
            "weight": plan.merge.weight,
            "seed": seed,
        }
        jobs[base, method, seed] = Job(FUSE, f"fusion of {method}, {base}, seed {seed}", spec, {})
    return jobs


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as an EraseConfig has them; YAML has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def with_pictures(
    plan: Plan, erasers: list[Eraser], digests: Mapping[str, Mapping[str, str]], judge: Mapping[str, str]
) -> list[Eraser]:
    """The erasers, and those of the plan's files, each with the jobs that draw with it.

    Args:
        plan: the plan.
        erasers: that it trains.
        digests: of every base's files.
        judge: those of the judge's files; see `picture_job.judge_files`.

    Raises:
        ValueError: a prompt set has no usable row, or a file is not there.
    """
    pictures = plan.pictures
    if pictures is None:
        return erasers
    every = list(erasers)
    for base in plan.bases:
        for name, path in pictures.files.items():
            if not path.is_file():
                raise ValueError(f"there is no eraser {quoted(path.name)}")
            every.append(Eraser("", name, base, 0, file=path))
    tables = {name: _read_rows(prompt_set) for name, prompt_set in pictures.sets.items()}
    drawn = []
    for eraser in every:
        known = known_base(plan.bases[eraser.base], digests[eraser.base])
        shares = {}
        for name, rows in tables.items():
            shares[name] = _shares(pictures, name, rows, eraser, known, judge)
        drawn.append(dataclasses.replace(eraser, shares=shares))
    return drawn


def _read_rows(prompt_set: PromptSetPlan) -> list[PromptRow]:
    text = files.decode_text(prompt_set.file.read_bytes(), prompt_set.file.name)
    return read_table(text, count=prompt_set.count).rows


def _shares(
    pictures: PicturesPlan,
    name: str,
    rows: list[PromptRow],
    eraser: Eraser,
    base: dict[str, Any],
    judge: Mapping[str, str],
) -> PictureShares:
    filled = []
    for row in rows:
        prompt = row.prompt.replace("{}", eraser.concept)
        filled.append(PromptRow(prompt, row.seed, row.guidance, row.label.replace("{}", eraser.concept)))
    # A set without labels asks for what is erased; its pictures without an eraser are the same for all concepts.
    asked = [dataclasses.replace(row, label=row.label or eraser.concept) for row in filled]
    spec = {"base": base, **_judge_spec(pictures, judge)}
    before = list(_picture_jobs(pictures, name, filled, None, spec, eraser.base))
    after = list(_picture_jobs(pictures, name, asked, eraser, spec, eraser.base))
    return PictureShares(pictures.sets[name].cell, asked, before, after)


def _judge_spec(pictures: PicturesPlan, files: Mapping[str, str]) -> dict[str, Any]:
    """The judge of all jobs that draw, and the hashes of its files: another one under its name reads otherwise."""
    if not pictures.judge:
        return {"judge": None}
    return {"judge": pictures.judge.model_dump(), "judge_files": dict(files)}


def _picture_jobs(
    pictures: PicturesPlan, name: str, rows: list[PromptRow], eraser: Eraser | None, given: dict[str, Any], where: str
) -> Iterator[Job]:
    """A job for every `rows` rows. Without an eraser they are the same jobs for all erasers, and are drawn once.

    Args:
        pictures: of the plan.
        name: of the prompt set.
        rows: of the whole set.
        eraser: None draws with the base alone.
        given: base and judge, as a job holds them.
        where: the name of the base.
    """
    spec: dict[str, Any] = {
        **given,
        "size": [pictures.width, pictures.height, pictures.steps],
        "eraser": _eraser_spec(eraser),
        "strength": pictures.strength if eraser else 0.0,
        "wanted": sorted({row.label for row in rows if row.label}) if pictures.judge else [],
    }
    places = {"eraser": str(eraser.file)} if eraser and eraser.file else {}
    who = f"{eraser.concept} {eraser.method}".strip() if eraser else "original"
    for start in range(0, len(rows), pictures.rows):
        share = [[row.prompt, row.seed, row.guidance] for row in rows[start : start + pictures.rows]]
        label = f"{name} from row {start + 1}, {who}, {where}"
        yield Job(DRAW, label, {**spec, "rows": share}, places)


def _eraser_spec(eraser: Eraser | None) -> dict[str, str] | None:
    if eraser is None:
        return None
    if eraser.training:
        return {"job": eraser.training.id}
    assert eraser.file is not None, "an eraser is trained or a file"
    return {"sha256": hashlib.sha256(eraser.file.read_bytes()).hexdigest()}
