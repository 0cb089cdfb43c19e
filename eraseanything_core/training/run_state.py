"""The state of a run on disk: each file is written whole or not at all.

One folder a run: `state.safetensors` (float32 masters, optimisers, configuration, loss history) and the pools of the
present epoch. All chance is derived from the seed and the step number, so there is no generator to keep.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from .. import files
from ..lora.adapter import load_lora

STATE = "state.safetensors"
FREE = {"steps", "save_every", "gradient_checkpointing", "cache_gib"}  # settings that a resumed run may change
FREE |= {"monitor_every", "stop_score", "stop_drift", "samples"}  # they have chance of their own, or end a run
FORMAT = 2  # of a state; the first one did not say which model it is of

Told = tuple[dict[str, list[float]], dict[str, list[float]]]


def save(
    folder: Path, lora, optimizers: list[torch.optim.Optimizer], config, told: Told, finished: bool = False,
    base: str = "",
):  # fmt: skip
    """Replaces the state; a crash leaves the old one or the new one.

    Args:
        folder: of this run alone.
        lora: `lora.Lora`.
        optimizers: in a fixed order.
        config: a dataclass.
        told: loss lists, whose length is the number of steps done, and the looks from outside.
        finished: the pools are not needed any more.
        base: names the weights of the model, see `flux.fingerprint`.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    tensors, groups = {f"lora.{key}": t for key, t in lora.tensors(torch.float32).items()}, []
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        tensors |= {f"optimizer.{i}.{j}.{key}": v for j, held in state["state"].items() for key, v in _flat(held)}
        groups.append(state["param_groups"])
    plain = {key: t.cpu().contiguous() for key, t in tensors.items() if torch.is_tensor(t)}
    rest = {key: value for key, value in tensors.items() if not torch.is_tensor(value)}
    run = {"format": FORMAT, "base": base, "config": dataclasses.asdict(config)}
    run |= {"told": told, "groups": groups, "rest": rest}
    _write(folder / STATE, plain, {"run": json.dumps(run)})
    step = len(told[0]["loss"])
    for pools in folder.glob("pools-*.safetensors"):
        if finished or pools != _pools(folder, max(0, step - 1) // config.refresh_every):
            pools.unlink()


def resume(folder: Path, lora, optimizers: list[torch.optim.Optimizer], config, base: str = "") -> Told:
    """Loads the state into `lora` and `optimizers`; returns what `save` was told, empty when there is no state.

    Raises:
        ValueError: the state is damaged, no state of a run, or belongs to another model or configuration.
    """
    for part in folder.glob(".*.part"):
        part.unlink()  # of a process that was killed while it wrote
    if not (folder / STATE).exists():
        return {}, {}
    tensors, header = _read(folder / STATE)
    state = json.loads(header["run"])
    _check(folder, state, config, base)
    lora.load({key.removeprefix("lora."): t for key, t in tensors.items() if key.startswith("lora.")})
    for i, optimizer in enumerate(optimizers):
        held: dict[int, dict] = {}
        for key, value in (tensors | state["rest"]).items():
            kind, *place = key.split(".", 3)
            if kind == "optimizer" and int(place[0]) == i:
                slot, (outer, _, inner) = held.setdefault(int(place[1]), {}), place[2].partition("/")
                (slot.setdefault(outer, {}) if inner else slot)[inner or outer] = value
        optimizer.load_state_dict({"state": held, "param_groups": state["groups"][i]})
    history, seen = state["told"]
    return history, seen


def _check(folder: Path, state: dict, config, base: str):
    other = "or start a run under another name"
    if state.get("format") != FORMAT:
        raise ValueError(f"the run in {folder} was saved by another version of this pack: go on with that one, {other}")
    if state["base"] != base:
        names = f"{state['base'][:12] or 'none'}, not {base[:12] or 'none'}"
        raise ValueError(f"the run in {folder} is of another base model ({names}): connect that model, {other}")
    before, now = (_deciding(each) for each in (state["config"], dataclasses.asdict(config)))
    changed = sorted(k for k in now if before.get(k) != now[k])
    if changed:
        raise ValueError(f"the run in {folder} was made with other settings: {', '.join(changed)}")


def _deciding(settings: dict) -> dict:
    """The settings that a resumed run has to share, as JSON holds them."""
    return {key: value for key, value in json.loads(json.dumps(settings)).items() if key not in FREE}


def _flat(held: dict) -> list[tuple[str, object]]:
    """A weight's state with the tables in it as outer/inner: bitsandbytes keeps its bytes in one."""
    tables = {key: value if isinstance(value, dict) else {"": value} for key, value in held.items()}
    return [(f"{key}/{name}" if name else key, v) for key, table in tables.items() for name, v in table.items()]


def identity(config, base: str) -> str:
    """Names what decides the pools: SHA-256 of the settings that a resumed run has to share, and of the model."""
    return hashlib.sha256(json.dumps([_deciding(dataclasses.asdict(config)), base]).encode()).hexdigest()


def save_pools(folder: Path, number: int, tensors: dict[str, Tensor], of: str, covered: int):
    """Keeps the pools of an epoch: the student that walked them will have moved, and the teacher's walk is dear.

    Args:
        folder: of the run.
        number: of the epoch.
        tensors: see `pools.Epoch`.
        of: see `identity`.
        covered: the pairs before it have their targets.
    """
    held = {key: t.contiguous() for key, t in tensors.items()}
    _write(_pools(folder, number), held, {"of": of, "covered": str(covered)})


def load_pools(folder: Path, number: int, of: str) -> tuple[dict[str, Tensor], int]:
    """What `save_pools` was given, the tensors mapped; empty and 0 where there is nothing of this identity."""
    path = _pools(folder, number)
    tensors, header = _read(path, mapped=True) if path.exists() else ({}, {})
    return (tensors, int(header["covered"])) if header.get("of") == of else ({}, 0)


def discard(folder: Path):
    """Removes a run that has not come to its first state, and leaves any other as it is."""
    if folder.is_dir() and not (folder / STATE).exists():
        shutil.rmtree(folder)


def _pools(folder: Path, number: int) -> Path:
    return folder / f"pools-{number}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, *_parts(tensors, header | {"sha256": _digest(tensors)}))
    except OSError as error:
        again = "resume it" if (path.parent / STATE).exists() else "start again"
        refused = isinstance(error, PermissionError)
        advice = "allow writing there, close what has the file open" if refused else "make room"
        told = f"cannot save the run in {path.parent} ({error.strerror}): {advice} and {again}"
        raise OSError(error.errno, told) from error


def _read(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, header = load_lora(path, mapped)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or start a run under another name") from error
    if "sha256" not in header:
        raise ValueError(f"{path} is no state of a run: delete it, or start a run under another name")
    if header["sha256"] != _digest(tensors):
        raise ValueError(f"{path} is damaged (its checksum differs): delete it, or start a run under another name")
    return tensors, header


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(_raw(tensors[key]))
    return digest.hexdigest()


def _parts(tensors: dict[str, Tensor], header: dict[str, str]) -> list[bytes | memoryview]:
    """A safetensors file in parts that lie where the tensors lie: its own writer first makes all bytes in memory.

    The format: length of the header, JSON, data; wide types first, which keeps all of them aligned.
    """
    entries, end = {"__metadata__": header}, 0
    keys = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    for key in keys:
        tensor = tensors[key]
        begin, end = end, end + tensor.nbytes
        kind = str(tensor.dtype).removeprefix("torch.").replace("uint", "U").replace("int", "I")
        kind = kind.replace("bfloat", "BF").replace("float", "F").upper()
        entries[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(entries).encode()
    told += b" " * (-len(told) % 8)
    return [len(told).to_bytes(8, "little"), told, *(_raw(tensors[key]) for key in keys)]


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
