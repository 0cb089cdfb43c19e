"""Where a measurement comes from: the commit, the command, and hashes of all that decided it.

Also how a measurement of hours is made in parts: each call goes on from what earlier calls have stored.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn

from eraseanything_core import files

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
CACHE = ROOT / ".cache"


def commit() -> str:
    """The commit that is checked out, with a plus if files differ from it; "none" outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return described.stdout.strip() or "none"


def command_line(name: str, *arguments: object) -> str:
    """A command of `scripts/dev.py` as a report names it."""
    return " ".join(["python scripts/dev.py", name, *map(str, arguments)])


def parse_parts(parser: argparse.ArgumentParser, cache: Path) -> argparse.Namespace:
    """The arguments of a measurement that is made in parts, with `--threads` and `--seconds` added.

    Args:
        parser: has the measurement's own arguments.
        cache: where its outcomes are stored; the folder is made.
    """
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these; the next call goes on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache.mkdir(parents=True, exist_ok=True)
    return args


def stored_outcomes(path: Path, setting: dict) -> dict:
    """What earlier calls measured in the same setting. Outcomes of another setting are left out: they differ."""
    measured = json.loads(path.read_text()) if path.exists() else {}
    return measured if measured.get("setting") == setting else {"setting": setting}


def digest(*parts: object) -> str:
    """A short hash of modules, tensors, and whatever else has a faithful repr."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                sha.update(name.encode() + _bytes(tensor))
        elif isinstance(part, Tensor):
            sha.update(_bytes(part))
        else:
            sha.update(repr(part).encode() + b"\0")
    return sha.hexdigest()[:20]


def _bytes(tensor: Tensor) -> bytes:
    # Through uint8: NumPy has no bfloat16.
    return tensor.detach().contiguous().flatten().cpu().view(torch.uint8).numpy().tobytes()


def write_report(path: Path, report: dict, text: str) -> None:
    """Writes a report as `path`.json and, for people, as `path`.md, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path.with_name(path.name + ".json"), (json.dumps(report, indent=1) + "\n").encode())
    files.write_atomic(path.with_name(path.name + ".md"), text.encode())
