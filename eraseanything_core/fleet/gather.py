"""What a fleet hands out: LoRAs under names, reports, one table, and one LoRA of many on request."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..evaluation.metrics import rate
from ..evaluation.report import Answers, Report, make_report, to_json
from ..evaluation.report_text import markdown
from ..lora.factors import check_finite, check_same_model
from ..lora.files import LoraModel, read_lora, save_lora
from ..lora.headers import joint_header
from ..lora.key_styles import eraser_tensors, read_eraser, widest_dtype
from ..lora.merge import FUSION, GATED, UNGATED, combined
from ..protocols import Verdict
from .expand import Eraser, PictureShares, fusion_jobs, merge_groups
from .job import Job, file_name
from .picture_job import read_verdicts
from .plan import MergePlan, Plan
from .results import JOB_FILE, Results
from .training_job import LORA_FILE, TOLD_FILE

COLUMNS = ("concept", "method", "base", "seed", "pairs", "seconds", "attempts", "verdict", "lora")
ONLY_IN_COMFYUI = (
    "a file has no gates, so the merged LoRAs are on for every prompt: to gate the files of `loras`, choose them in "
    "Multi Erase LoRA"
)
SHORT_ID = 8  # digits of a job's id in a file name


@dataclass(frozen=True)
class Gathered:
    """What was written.

    Attributes:
        loras: files by their place in the table.
        merged: LoRAs of several erasers.
        reports: JSON files; a Markdown file lies beside each.
        rows: of the table.
        notes: what could not be written, and why.
    """

    loras: list[Path]
    merged: list[Path]
    reports: list[Path]
    rows: list[dict[str, Any]]
    notes: list[str]


def gather(plan: Plan, erasers: Sequence[Eraser], results: Results, folder: Path, loras: Path) -> Gathered:
    """Writes all that is done by now; what is not done is left out of the table.

    Args:
        plan: the plan.
        erasers: of `expand.with_pictures`.
        results: where the jobs' results are.
        folder: where the table, the reports and merged LoRAs go.
        loras: where the LoRAs go.
    """
    files.check_folder(folder)
    gathered = Gathered([], [], [], [], [])
    for eraser in erasers:
        if eraser.training and not results.is_done(eraser.training.id):
            continue
        row, path = _trained_row(eraser, results, loras)
        if path:
            gathered.loras.append(path)
        answers = _answers(eraser, results)
        row.update(_rates(answers))
        _write_report(eraser, answers, results, folder / "reports", gathered)
        gathered.rows.append(row)
    write_table(gathered.rows, folder)
    if plan.merge:
        gathered.merged.extend(merged_loras(plan, plan.merge, erasers, results, folder, gathered.notes))
    return gathered


def lora_name(eraser: Eraser) -> str:
    """The name of an eraser's file. The same training has the same name, another one never has it."""
    assert eraser.training is not None, "a file has its name already"
    parts = (eraser.concept, eraser.method, eraser.base, f"seed {eraser.seed}", eraser.training.id[:SHORT_ID])
    return file_name(*parts)


def _trained_row(eraser: Eraser, results: Results, loras: Path) -> tuple[dict[str, Any], Path | None]:
    """The first columns of the table, and the LoRA under its name."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row.update(concept=eraser.concept, method=eraser.method, base=eraser.base, seed=eraser.seed)
    if eraser.training is None:
        return row, None
    result = results.result(eraser.training.id)
    told = json.loads((result / TOLD_FILE).read_text(encoding="utf-8"))
    record = json.loads((result / JOB_FILE).read_text(encoding="utf-8"))
    path = copy_lora(result / LORA_FILE, loras, lora_name(eraser))
    row.update(pairs=told["pairs"], seconds=told["train_seconds"], verdict=told["verdict"])
    row.update(attempts=len(record["attempts"]), lora=path.name)
    return row, path


def copy_lora(source: Path, folder: Path, name: str) -> Path:
    """A LoRA in another folder; one that is there already is the same."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        files.check_folder(folder)
        files.write_atomic(path, source.read_bytes())
    return path


def _answers(eraser: Eraser, results: Results) -> dict[str, Answers]:
    """The judge's answers by question; of several sets with one question, together. Sets that are not done lack."""
    found: dict[str, Answers] = {}
    for shares in eraser.shares.values():
        if not all(results.is_done(job.id) for job in (*shares.before, *shares.after)):
            continue
        if shares.before and not shares.before[0].spec["judge"]:
            continue
        answers = _judged(shares, results)
        found[shares.cell] = _joined(found[shares.cell], answers) if shares.cell in found else answers
    return found


def _judged(shares: PictureShares, results: Results) -> Answers:
    judge, before = _verdicts(shares.before, results)
    _, after = _verdicts(shares.after, results)
    return Answers(
        tuple(row.label for row in shares.rows),
        before,
        after,
        judge,
        tuple(row.prompt for row in shares.rows),
        tuple(row.seed for row in shares.rows),
    )


def _verdicts(jobs: Sequence[Job], results: Results) -> tuple[dict[str, str | float], tuple[Verdict, ...]]:
    verdicts: tuple[Verdict, ...] = ()
    for job in jobs:
        judge, share = read_verdicts(results.result(job.id))
        verdicts += share
    return judge, verdicts


def _joined(first: Answers, second: Answers) -> Answers:
    return Answers(
        first.wanted + second.wanted,
        first.before + second.before,
        first.after + second.after,
        first.judge,
        first.prompts + second.prompts,
        first.seeds + second.seeds,
    )


def _rates(answers: dict[str, Answers]) -> dict[str, Any]:
    """Columns of the table: what was shown before and after, and of how many pictures."""
    columns: dict[str, Any] = {}
    for cell, answer in answers.items():
        before, after = answer.outcomes()
        columns[f"{cell} before"] = round(rate(before)["value"], 4)
        columns[f"{cell} after"] = round(rate(after)["value"], 4)
        columns[f"{cell} n"] = len(after)
    return columns


def _write_report(
    eraser: Eraser, answers: dict[str, Answers], results: Results, folder: Path, gathered: Gathered
) -> None:
    """Writes the report of an eraser whose pictures were judged."""
    if "acc_e" not in answers:
        return
    path = results.result(eraser.training.id) / LORA_FILE if eraser.training else eraser.file
    assert path is not None, "an eraser is trained or a file"
    concept = eraser.concept or answers["acc_e"].wanted[0]
    report: Report = make_report(concept, answers, model=eraser.base, lora=read_lora(path))
    name = lora_name(eraser) if eraser.training else file_name(eraser.method, eraser.base)
    files.check_folder(folder)
    gathered.reports.append(files.write_atomic(folder / f"{name}.json", to_json(report).encode()))
    files.write_atomic(folder / f"{name}.md", markdown(report).encode())


def write_table(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes table.csv and table.md, a row an eraser."""
    columns = list(COLUMNS)
    for row in rows:
        columns += [name for name in row if name not in columns]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write_atomic(folder / "table.csv", text.getvalue().encode())
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        cells = [str(row.get(name, "")).replace("|", "\\|") for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    files.write_atomic(folder / "table.md", ("\n".join(lines) + "\n").encode())


def merged_loras(
    plan: Plan, merge: MergePlan, erasers: Sequence[Eraser], results: Results, folder: Path, notes: list[str]
) -> list[Path]:
    """One LoRA of all trained erasers of each base, method and seed; a note where some of them are not done."""
    fusions = fusion_jobs(plan, erasers)
    written = []
    for key, group in merge_groups(erasers).items():
        base, method, seed = key
        missing = [eraser.concept for eraser in group if eraser.training and not results.is_done(eraser.training.id)]
        if missing:
            notes.append(f"{method} on {base}, seed {seed}, is not merged: {', '.join(missing)} failed")
            continue
        name = file_name("merged", method, base, f"seed {seed}")
        if merge.mode != FUSION:
            lora = merged(merge, group, results, seed)
            written.append(save_lora(lora, folder / f"{name}.safetensors", lora.header))
        elif results.is_done(fusions[key].id):
            source = results.result(fusions[key].id) / LORA_FILE
            written.append(files.write_atomic(folder / f"{name}.safetensors", source.read_bytes()))
    if merge.mode == GATED and written:
        notes.append(ONLY_IN_COMFYUI)
    return written


def merged(merge: MergePlan, group: Sequence[Eraser], results: Results, seed: int) -> LoraModel:
    """One LoRA of several, as *Multi Erase LoRA* makes it."""
    names = []
    loras = []
    for eraser in group:
        assert eraser.training is not None, "only trained erasers are merged"
        names.append(lora_name(eraser))
        loras.append(read_lora(results.result(eraser.training.id) / LORA_FILE))
    parts = [read_eraser(lora, lora.header, name) for lora, name in zip(loras, names)]
    check_same_model(parts, names)
    weights = [merge.weight] * len(parts)
    # Gates belong to a MODEL. A file has none, so its erasers are all on.
    mode = UNGATED if merge.mode == GATED else merge.mode
    one = combined(parts, weights, mode, merge.rank, merge.energy, merge.density, seed)
    check_finite(one, f"the sum of {len(parts)} erasers")
    header = joint_header([lora.header for lora in loras], names, weights, mode)
    return LoraModel(eraser_tensors(one, widest_dtype(loras)), header)
