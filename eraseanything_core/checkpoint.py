"""The state of a run on disk, written whole or not at all.

One folder a run: `lora.safetensors` (float32 masters), `optimizer.pt`, `run.json` (configuration and loss history).
All chance is derived from the seed and the step number, so there is no generator to keep.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save(folder: Path, lora, optimizers: list[torch.optim.Optimizer], config, history: dict[str, list[float]]):
    """Replaces the folder by the present state; a crash leaves the old one or the new one.

    Args:
        folder: of this run alone.
        lora: `lora.Lora`.
        optimizers: in a fixed order.
        config: a dataclass.
        history: loss lists; their length is the number of steps done.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(lora.tensors(torch.float32), part / "lora.safetensors")
    torch.save([o.state_dict() for o in optimizers], part / "optimizer.pt")
    (part / "run.json").write_text(json.dumps({"config": dataclasses.asdict(config), "history": history}))
    for file in part.iterdir():
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def resume(folder: Path, lora, optimizers: list[torch.optim.Optimizer], config) -> dict[str, list[float]]:
    """Loads the state into `lora` and `optimizers`; returns the loss history, empty when there is no state.

    Raises:
        ValueError: the state belongs to another configuration (the number of steps may differ).
    """
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():  # stopped between the two renames of `save`
        old.replace(folder)
    if not (folder / "run.json").exists():
        return {}
    state = json.loads((folder / "run.json").read_text())
    known = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = sorted(k for k in known if k != "steps" and state["config"].get(k) != known[k])
    if changed:
        raise ValueError(f"the run in {folder} was made with other settings: {', '.join(changed)}")
    lora.load(load_file(folder / "lora.safetensors"))
    for optimizer, saved in zip(optimizers, torch.load(folder / "optimizer.pt", weights_only=True), strict=True):
        optimizer.load_state_dict(saved)
    return state["history"]
