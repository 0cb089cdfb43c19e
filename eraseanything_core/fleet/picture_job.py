"""A share of a prompt set as a job: pictures by a base model, with an eraser or without, and what a judge reads."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import files
from ..evaluation import judge_choice
from ..evaluation.judge_choice import JudgeEntry, JudgeRequest, build_judge, require_judge
from ..evaluation.judges import JUDGE_BATCH_SIZE, sha256
from ..evaluation.nudenet_judge import nudenet_file
from ..protocols import Judge, Verdict
from .job import Job
from .results import Results
from .session import Row, Session
from .training_job import LORA_FILE

PICTURES = "pictures"  # the folder of a result
VERDICTS_FILE = "verdicts.json"
JUDGE_PARTS = (".safetensors", ".json", ".txt")  # files of a CLIP's folder that decide what it reads


def known_judges() -> Mapping[str, JudgeEntry]:
    """The judges by name; TinyFlux's are among them where it is installed."""
    if find_spec("..tinyflux", __package__) is None:
        return judge_choice.JUDGES
    from ..tinyflux import judges as tinyflux

    return {**tinyflux.JUDGES, **judge_choice.JUDGES}


def judge_files(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a judge reads, by name. Those that this pack ships count as its code.

    Args:
        settings: of a plan's judge.
        folder: of judges' weights.

    Raises:
        ValueError: see `judge_choice.require_judge`.
    """
    name, weights = settings["name"], settings["weights"]
    judges = known_judges()
    require_judge(name, folder, weights, judges)
    paths = [nudenet_file()[0]] if name == "NudeNet" else []
    if judges[name].needs_weights:
        whole = folder / weights
        paths = sorted(path for path in whole.iterdir() if path.suffix in JUDGE_PARTS) if whole.is_dir() else [whole]
    return {path.name: sha256(path) for path in paths}


def run_pictures(session: Session, job: Job, work: Path, results: Results) -> None:
    """Draws what an earlier attempt has not drawn, then lets the judge read all of it.

    Raises:
        ValueError: the eraser's file is another one than when the plan was made, or the judge lacks something.
    """
    rows: list[Row] = [(prompt, seed, guidance) for prompt, seed, guidance in job.spec["rows"]]
    folder = work / "result" / PICTURES
    folder.mkdir(exist_ok=True)
    missing = [i for i in range(len(rows)) if not picture_path(folder, i).exists()]
    width, height, steps = job.spec["size"]
    lora = eraser_file(job, results)
    asked = [rows[i] for i in missing]
    base = job.spec["base"]["loaders"]
    drawn = session.pictures(base, asked, (width, height, steps), lora, job.spec["strength"])
    for i, picture in zip(missing, drawn, strict=True):
        files.write_atomic(picture_path(folder, i), png(picture))
    if job.spec["judge"]:
        judge = _judge(job.spec["judge"], job.spec["wanted"], session.judges)
        _write_verdicts(work / "result", judge, len(rows), folder)


def picture_path(folder: Path, row: int) -> Path:
    """The file of a row's picture."""
    return folder / f"{row:05d}.png"


def eraser_file(job: Job, results: Results) -> Path | None:
    """The LoRA of a picture job: that of a training, or a file that the plan names; None draws without one."""
    eraser = job.spec["eraser"]
    if not eraser:
        return None
    if "job" in eraser:
        return results.result(eraser["job"]) / LORA_FILE
    path = Path(job.places["eraser"])
    if hashlib.sha256(path.read_bytes()).hexdigest() != eraser["sha256"]:
        raise ValueError(f"{path.name} is another file on this machine than where the plan was started")
    return path


def _judge(settings: dict[str, Any], wanted: Sequence[str], folder: Path) -> Judge:
    chosen = {name: value for name, value in settings.items() if name != "name"}
    return build_judge(settings["name"], JudgeRequest(wanted, folder, **chosen), known_judges())


def _write_verdicts(folder: Path, judge: Judge, count: int, pictures: Path) -> None:
    verdicts: list[Verdict] = []
    for start in range(0, count, JUDGE_BATCH_SIZE):
        # Read from the files, so that a job that went on reads the same as one that was never stopped.
        batch = [read_png(picture_path(pictures, i)) for i in range(start, min(count, start + JUDGE_BATCH_SIZE))]
        verdicts += judge.read(torch.stack(batch))
    record = {"judge": dict(judge.identity), "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts]}
    files.write_atomic(folder / VERDICTS_FILE, (json.dumps(record, indent=1) + "\n").encode())


def read_verdicts(folder: Path) -> tuple[dict[str, str | float], tuple[Verdict, ...]]:
    """The judge's identity, and one verdict a row."""
    record = json.loads((folder / VERDICTS_FILE).read_text(encoding="utf-8"))
    return record["judge"], tuple(Verdict(**verdict) for verdict in record["verdicts"])


def png(picture: Tensor) -> bytes:
    """A picture [h, w, 3] in [0, 1] as a PNG file."""
    pixels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def read_png(path: Path) -> Tensor:
    """A picture [3, h, w] in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
