"""The files of a run. Each is written whole or not at all.

A run has one folder. `state.safetensors` holds the float32 factors, the optimizers, the configuration, the losses and
the scores. `pools-N.safetensors` holds the trajectories of the present epoch. `lora.txt` names the LoRA file of a run
that has ended. No random generator is saved: all chance comes from the seed and the pair's number.
"""

import dataclasses
import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import files
from ..concepts import prompts
from ..lora.files import load_lora, safetensors_parts, tensors_sha256
from ..protocols import TrainableLora
from .config import EraseConfig

STATE_FILE = "state.safetensors"
LORA_NAME_FILE = "lora.txt"  # only the folder of a run that has ended and whose LoRA is written has it
FORMAT = 3  # of a state; a state of another format is refused
# Settings that a resumed run may change. They do not decide what a pair does: monitoring and previews draw from
# generators of their own.
CHANGEABLE = {
    "steps",
    "save_every",
    "gradient_checkpointing",
    "deterministic",
    "cache_gib",
    "monitor_every",
    "held_out",
    "look_pictures",
    "look_steps",
    "stop_when_gone",
    "stop_drift",
    "preview_images",
}
# Those of them that decide what a pair does after all, where the learning rates follow the looks.
LOOKS = {"monitor_every", "held_out", "look_pictures", "look_steps"}


def save_state(
    folder: Path,
    lora: TrainableLora,
    optimizers: list[torch.optim.Optimizer],
    config: EraseConfig,
    losses: dict[str, list[float]],
    scores: dict[str, list[float]],
    finished: bool = False,
    base: str = "",
) -> None:
    """Replaces the state. A crash leaves the old one or the new one.

    Args:
        folder: of this run alone.
        lora: the factors.
        optimizers: in a fixed order.
        config: the run's settings.
        losses: one list a loss; the length of `loss` is the number of pairs that are done.
        scores: the measurements.
        finished: the trajectories are not needed any more and are removed.
        base: names the weights of the model.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    tensors = {f"lora.{key}": tensor for key, tensor in lora.tensors(torch.float32).items()}
    groups = []
    other_values: dict[str, Any] = {}  # what an optimizer keeps besides tensors
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for parameter, entries in state["state"].items():
            for name, value in _flatten(entries).items():
                key = f"optimizer.{i}.{parameter}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value.cpu().contiguous()
                else:
                    other_values[key] = value
    run = {
        "format": FORMAT,
        "base": base,
        "config": dataclasses.asdict(config),
        "losses": losses,
        "scores": scores,
        "groups": groups,
        "other_values": other_values,
    }
    _write(folder / STATE_FILE, tensors, {"run": json.dumps(run)})
    # Only after the state: a crash in between leaves a file too many, never one too few.
    last_pair = max(0, len(losses["loss"]) - 1)
    present = _trajectory_file(folder, last_pair // config.refresh_every)
    for path in folder.glob("pools-*.safetensors"):
        if finished or path != present:
            path.unlink()


def load_state(
    folder: Path, lora: TrainableLora, optimizers: list[torch.optim.Optimizer], config: EraseConfig, base: str = ""
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Loads a state into a LoRA and its optimizers.

    Args:
        folder: of the run.
        lora: receives the factors.
        optimizers: in the order in which they were saved.
        config: the settings with which the run goes on.
        base: names the weights of the model.

    Returns:
        The losses and the scores; both empty when there is no state.

    Raises:
        ValueError: the state is damaged, no state of a run, or belongs to another model or other settings.
    """
    for part in folder.glob(".*.part"):
        part.unlink()  # left by a process that was killed while it wrote
    if not (folder / STATE_FILE).exists():
        return {}, {}
    tensors, header = _read(folder / STATE_FILE)
    run = json.loads(header["run"])
    # Before anything is loaded: a state that is refused leaves the LoRA as it was.
    _check(folder, run, config, base)
    lora.load({key.removeprefix("lora."): tensor for key, tensor in tensors.items() if key.startswith("lora.")})
    values = {**tensors, **run["other_values"]}
    for i, optimizer in enumerate(optimizers):
        state = _optimizer_state(values, f"optimizer.{i}.")
        optimizer.load_state_dict({"state": state, "param_groups": run["groups"][i]})
    return run["losses"], run["scores"]


def _optimizer_state(values: dict[str, Any], prefix: str) -> dict[int, dict[str, Any]]:
    """An optimizer's state by parameter, from keys such as `optimizer.0.3.exp_avg`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in values.items():
        if not key.startswith(prefix):
            continue
        parameter, _, name = key.removeprefix(prefix).partition(".")
        entries = state.setdefault(int(parameter), {})
        table, slash, inner_name = name.partition("/")
        if slash:
            entries.setdefault(table, {})[inner_name] = value
        else:
            entries[name] = value
    return state


def _flatten(entries: dict[str, Any]) -> dict[str, Any]:
    """A parameter's optimizer state without inner tables: bitsandbytes keeps its 8-bit state in one.

    The entries of a table are named `table/entry`.
    """
    flat = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            for inner_name, inner_value in value.items():
                flat[f"{name}/{inner_name}"] = inner_value
        else:
            flat[name] = value
    return flat


def _check(folder: Path, run: dict[str, Any], config: EraseConfig, base: str) -> None:
    """Raises ValueError when a state is not of this format, model and settings."""
    otherwise = "or start a run under another name"
    if run.get("format") != FORMAT:
        raise ValueError(
            f"the run in {folder} was saved by another version of this pack: go on with that one, {otherwise}"
        )
    if run["base"] != base:
        names = f"{run['base'][:12] or 'none'}, not {base[:12] or 'none'}"
        raise ValueError(f"the run in {folder} is of another base model ({names}): connect that model, {otherwise}")
    before = _deciding_settings(run["config"])
    now = _deciding_settings(dataclasses.asdict(config))
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        raise ValueError(f"the run in {folder} was made with other settings: {', '.join(changed)}")


def _deciding_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run has to share."""
    # As in a state's header, so that both sides compare equal.
    as_stored = json.loads(json.dumps(settings))  # JSON turns tuples into lists
    changeable = CHANGEABLE - LOOKS if as_stored.get("adapt_rate") else CHANGEABLE
    return {name: value for name, value in as_stored.items() if name not in changeable}


def identity(config: EraseConfig, base: str) -> str:
    """SHA-256 of what decides the trajectories: the settings that a resumed run has to share, and the model."""
    settings = _deciding_settings(dataclasses.asdict(config))
    return hashlib.sha256(json.dumps([settings, base]).encode()).hexdigest()


def save_trajectories(folder: Path, number: int, tensors: dict[str, Tensor], identity: str, covered: int) -> None:
    """Saves the trajectories of an epoch.

    Args:
        folder: of the run.
        number: of the epoch.
        tensors: see `trajectory_cache.Epoch.tensors`.
        identity: see the function `identity`.
        covered: pairs before this one have the teacher's answers.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    # safetensors refuses tensors that are not contiguous.
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    header = {"identity": identity, "covered": str(covered)}
    _write(_trajectory_file(folder, number), contiguous, header)


def load_trajectories(folder: Path, number: int, identity: str) -> tuple[dict[str, Tensor], int]:
    """What `save_trajectories` was called with: the tensors, mapped from the file, and `covered`.

    Both are empty, {} and 0, where there is no file of this identity.

    Raises:
        ValueError: the file is damaged.
    """
    path = _trajectory_file(folder, number)
    if not path.exists():
        return {}, 0
    tensors, header = _read(path, mapped=True)
    # Not an error: these trajectories can be walked anew, which costs time and nothing else.
    if header.get("identity") != identity:
        return {}, 0
    return tensors, int(header["covered"])


def mark_finished(folder: Path, lora: str) -> None:
    """Notes that a run has ended and that its LoRA is written, so that it is never continued.

    Args:
        folder: of the run.
        lora: name of the LoRA's file.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    # After the LoRA and not with the last state: where the LoRA cannot be written, the run hands it out again.
    files.write_atomic(folder / LORA_NAME_FILE, lora.encode())


def unfinished_run(folders: Iterable[Path], config: EraseConfig, base: str) -> Path | None:
    """The folder of a stopped run that these settings go on with; of several the one with the most pairs.

    Args:
        folders: where to look.
        config: as the user set it; it may differ in what `CHANGEABLE` names.
        base: names the weights of the model.

    Raises:
        ValueError: a prompt of the configuration has no place for the concept.
    """
    planned = _as_planned(config)
    pairs_by_folder: dict[Path, int] = {}
    for folder in folders:
        pairs = _pairs_to_continue(folder, planned, base)
        # A run that is longer than what is asked for now would give a LoRA of too many pairs.
        if pairs is not None and pairs <= config.steps:
            pairs_by_folder[folder] = pairs
    return max(pairs_by_folder, key=pairs_by_folder.__getitem__, default=None)


def _as_planned(config: EraseConfig) -> EraseConfig:
    """The configuration as a run saves it: `plan.prepare` drops blanks around words and makes templates of prompts."""
    concept = _single_spaced(config.concept)
    if config.unasked:
        return dataclasses.replace(config, concept=concept)
    return dataclasses.replace(
        config,
        concept=concept,
        synonyms=tuple(map(_single_spaced, config.synonyms)),
        irrelevant=tuple(map(_single_spaced, config.irrelevant)),
        templates=tuple(prompts.as_template(template, concept) for template in config.templates),
        held_out=tuple(prompts.as_template(template, concept) for template in config.held_out),
    )


def _single_spaced(word: str) -> str:
    return " ".join(word.split())


def _pairs_to_continue(folder: Path, config: EraseConfig, base: str) -> int | None:
    """The pairs of a stopped run with these settings; None for any other folder."""
    if not folder.is_dir() or (folder / LORA_NAME_FILE).exists():
        return None
    if not (folder / STATE_FILE).exists():
        # Killed before its first state: it has trajectories at most, which need not be walked again.
        own = identity(config, base)
        identities = [_header(path).get("identity") for path in folder.glob("pools-*.safetensors")]
        return 0 if own in identities else None
    run = json.loads(_header(folder / STATE_FILE).get("run", "{}"))
    if run.get("format") != FORMAT or run["base"] != base:
        return None
    if _deciding_settings(run["config"]) != _deciding_settings(dataclasses.asdict(config)):
        return None
    return len(run["losses"]["loss"])


def _header(path: Path) -> dict[str, str]:
    """The header of a file, without its tensors; empty where it is damaged, since nothing can go on from it."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def discard(folder: Path) -> None:
    """Removes a run that has no state yet, and leaves any other as it is."""
    if not folder.is_dir() or (folder / STATE_FILE).exists():
        return
    # The run `people` may lie beside runs that are called `people/star`: those stay.
    entries = list(folder.iterdir())
    for entry in entries:
        if not entry.is_dir():
            entry.unlink()
    if not any(entry.is_dir() for entry in entries):
        folder.rmdir()


def _trajectory_file(folder: Path, number: int) -> Path:
    return folder / f"pools-{number}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Writes tensors with their checksum; raises OSError with advice."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, *safetensors_parts(tensors, header | {"sha256": tensors_sha256(tensors)}))
    except OSError as error:
        again = "go on with it" if (path.parent / STATE_FILE).exists() else "start again"
        # Only these two say that the disk is full. A read-only folder has a number of its own besides PermissionError.
        advice = "allow writing there, close what has the file open"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room"
        problem = f"cannot save the run in {path.parent} ({error.strerror})"
        raise OSError(error.errno, f"{problem}: {advice} and {again}") from error


def _read(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its header; raises ValueError when it is damaged or not of a run."""
    advice = "delete it, or start a run under another name"
    try:
        tensors, header = load_lora(path, mapped)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if "sha256" not in header:
        raise ValueError(f"{path} is no state of a run: {advice}")
    if header["sha256"] != tensors_sha256(tensors):
        raise ValueError(f"{path} is damaged (its checksum differs): {advice}")
    return tensors, header
