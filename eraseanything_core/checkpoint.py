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

from . import files
from .lora import load_lora

STATE = "state.safetensors"
FREE = {"steps", "save_every", "checkpoint", "pool_gib"}  # settings that a resumed run may change

Told = tuple[dict[str, list[float]], dict[str, list[float]]]


def save(folder: Path, lora, optimizers: list[torch.optim.Optimizer], config, told: Told, finished: bool = False):
    """Replaces the state; a crash leaves the old one or the new one.

    Args:
        folder: of this run alone.
        lora: `lora.Lora`.
        optimizers: in a fixed order.
        config: a dataclass.
        told: loss lists, whose length is the number of steps done, and the looks from outside.
        finished: the pools are not needed any more.

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
    run = {"config": dataclasses.asdict(config), "told": told, "groups": groups, "rest": rest}
    _write(folder / STATE, plain, {"run": json.dumps(run)})
    step = len(told[0]["loss"])
    for pools in folder.glob("pools-*.safetensors"):
        if finished or pools != _pools(folder, max(0, step - 1) // config.refresh):
            pools.unlink()


def resume(folder: Path, lora, optimizers: list[torch.optim.Optimizer], config) -> Told:
    """Loads the state into `lora` and `optimizers`; returns what `save` was told, empty when there is no state.

    Raises:
        ValueError: the state is damaged, no state of a run, or belongs to another configuration.
    """
    for part in folder.glob(".*.part"):
        part.unlink()  # of a process that was killed while it wrote
    if not (folder / STATE).exists():
        return {}, {}
    tensors, header = _read(folder / STATE)
    state = json.loads(header["run"])
    known = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = sorted(k for k in known if k not in FREE and state["config"].get(k) != known[k])
    if changed:
        raise ValueError(f"the run in {folder} was made with other settings: {', '.join(changed)}")
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


def _flat(held: dict) -> list[tuple[str, object]]:
    """A weight's state with the tables in it as outer/inner: bitsandbytes keeps its bytes in one."""
    tables = {key: value if isinstance(value, dict) else {"": value} for key, value in held.items()}
    return [(f"{key}/{name}" if name else key, v) for key, table in tables.items() for name, v in table.items()]


def save_pools(folder: Path, number: int, tensors: dict[str, Tensor]):
    """Keeps the pools of an epoch: the student that walked them will have moved, and the teacher's walk is dear."""
    _write(_pools(folder, number), {key: t.contiguous() for key, t in tensors.items()}, {})


def load_pools(folder: Path, number: int) -> dict[str, Tensor] | None:
    """The tensors of an epoch's pools, or None."""
    path = _pools(folder, number)
    return _read(path)[0] if path.exists() else None


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
        told = f"cannot save the run in {path.parent} ({error.strerror}): make room and {again}"
        raise OSError(error.errno, told) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, header = load_lora(path)
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
