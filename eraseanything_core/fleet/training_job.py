"""A training as a job: from the settings in its spec to a LoRA and what is said of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..concepts.concept_set import ConceptSet
from ..erasers.registry import method_of
from ..lora.files import save_lora
from ..lora.headers import training_header
from ..training.config import EraseConfig
from ..training.recipe import train_eraser
from ..training.trainer import EraseResult
from . import direct_methods
from .job import Job
from .results import Results
from .session import Session

LORA_FILE = "lora.safetensors"
TOLD_FILE = "told.json"  # what is said of the training
RUN_FOLDER = "run"  # in the work folder: the run state


def plain_config(config: EraseConfig) -> dict[str, Any]:
    """A configuration as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def config_of(plain: dict[str, Any]) -> EraseConfig:
    """The configuration of `plain_config`; JSON has turned its tuples into lists."""
    return EraseConfig(**{name: _with_tuples(value) for name, value in plain.items()})


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def run_training(session: Session, job: Job, work: Path, results: Results) -> None:
    """Trains, or goes on with the run state in `work`, and writes the LoRA and what is said of it.

    Raises:
        ValueError: the model cannot be trained exactly, or the settings cannot work.
    """
    # By what it is made from, and not by its name: the settings of a batch may choose the MACE of *Erase Settings*.
    if "config" not in job.spec:
        _run_directly(session, job, work)
        return
    host = session.host(job.spec["base"]["loaders"])
    config = config_of(job.spec["config"])
    folder = work / RUN_FOLDER
    auto = not config.gradient_checkpointing
    result = train_eraser(host, config, run_dir=folder, auto=auto, method=method_of(config))
    if result.interrupted:
        raise InterruptedError("the training was interrupted: run the plan again to go on with it")
    measured = result.verdict.text() if result.verdict else ""
    trained = dataclasses.replace(result.config, steps=result.steps)
    header = training_header(trained, host.fingerprint(), job.spec["method"], measured)
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in result.lora.items()}
    _write(work / "result", tensors, header, _told(result, measured))


def _run_directly(session: Session, job: Job, work: Path) -> None:
    """Makes an eraser that is not trained in pairs; it has no run state and begins again."""
    base = job.spec["base"]["loaders"]
    name = job.spec["method"]
    host = session.host(base)
    words = ConceptSet.from_json(json.dumps(job.spec["concept"]))
    config = direct_methods.config_of(name, words, job.spec["settings"], job.spec["seed"])
    # ComfyUI's text encoders run in inference mode, and what they give has to go on to a training.
    with torch.inference_mode(False):
        made = direct_methods.DIRECT[name].erase(host, session.text_linears(base), config)
    told = {"pairs": made.steps, "verdict": "", "notes": made.notes, "train_seconds": round(made.seconds, 1)}
    # In float32: these LoRAs cancel large parts of a weight.
    _write(work / "result", made.lora, training_header(config, host.fingerprint(), name), told)


def _told(result: EraseResult, measured: str) -> dict[str, Any]:
    return {
        "pairs": result.steps,
        "verdict": measured,
        "notes": result.notes,
        "train_seconds": round(result.seconds, 1),
    }


def _write(folder: Path, lora: dict[str, Tensor], header: dict[str, Any], told: dict[str, Any]) -> None:
    save_lora(lora, folder / LORA_FILE, header)
    files.write_atomic(folder / TOLD_FILE, (json.dumps(told, indent=1) + "\n").encode())
