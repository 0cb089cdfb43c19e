"""Where training keeps what it makes, and how: whole or not at all, with a log that goes on."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "world"  # checkpoints, latents and logs; nothing of it is committed
RESUME = Path(__file__).parent / "weights"  # what a fresh checkout goes on from, in bf16


class Log:
    """Appends one line of JSON a report and prints it."""

    def __init__(self, stage: str, folder: Path = CACHE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stage}.jsonl"
        self.stage = stage

    def __call__(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, "time": round(time.time())} | {name: round(value, 5) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(self.stage, row, flush=True)


def save(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype = torch.float32, **metadata: str) -> None:
    """Writes a safetensors file under another name and renames it, so that a stop leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    for name, tensor in tensors.items():
        kept[name] = (
            tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        )
    part = path.with_suffix(".part")
    save_file(kept, part, metadata={"format": "pt"} | metadata)
    part.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32."""
    return {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}


def newest(name: str, cache: Path = CACHE, committed: Path = RESUME) -> Path | None:
    """The checkpoint of that name to go on from: this machine's own, or the committed one, or none."""
    for path in (cache / f"{name}.safetensors", committed / f"{name}.safetensors"):
        if path.exists():
            return path
    return None
