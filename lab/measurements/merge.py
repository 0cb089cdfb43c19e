"""Times the modes that need no model at the true size of Flux.1: `python scripts/dev.py merge`.

Random erasers of the paper's targets, rank 8, 38 linears. Writes benchmarks/merge.json and merge.md: seconds, CPU
seconds of all threads and the process's peak memory of every mode, each in a process of its own.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time

import torch

from eraseanything_core.lora import merge
from eraseanything_core.lora.factors import Factors
from eraseanything_core.lora.keys import target_slices
from lab.provenance import BENCHMARKS, commit

WIDTH = 3072
DUAL = 19
SINGLE = 38
SHARED = ("count", "rank", "kept", "linears", "threads")


def random_erasers(count: int, rank: int, linears: int) -> list[dict[str, Factors]]:
    """Erasers of random factors at FLUX.1's size."""
    parts = target_slices("paper", WIDTH, DUAL, SINGLE, 4.0)[:linears]
    torch.manual_seed(0)
    return [
        {p.key: Factors(torch.randn(p.rows, rank), torch.randn(rank, p.columns) / 50) for p in parts}
        for _ in range(count)
    ]


def peak_bytes() -> int:
    """This process's memory at its highest."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def one(mode: str, count: int, rank: int, linears: int, kept: int) -> dict:
    """Seconds and GB of a mode in this process; the erasers are among the GB, not among the seconds."""
    erasers = random_erasers(count, rank, linears)
    if mode in merge.SPARSE_MODES:
        importlib.import_module("peft")
    begun = time.monotonic()
    worked = time.process_time()
    combined = merge.combined(erasers, [1.0] * count, mode, rank=kept, density=0.5)
    seconds = time.monotonic() - begun
    worked = time.process_time() - worked
    peak = peak_bytes() / 2**30
    rank = len(next(iter(combined.values())).down)
    return {"seconds": round(seconds, 1), "cpu_seconds": round(worked, 1), "peak_gb": round(peak, 2), "rank": rank}


def main():
    """Times every mode in a process of its own and writes the table."""
    parser = argparse.ArgumentParser(prog="dev.py merge", description=__doc__)
    parser.add_argument("--modes", nargs="*", choices=merge.MODES, default=list(merge.MODES))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--kept", type=int, default=256, help="rank of the result where a mode asks for it; 0 is all")
    parser.add_argument("--linears", type=int, default=38, help="of 38; fewer for what takes long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        print(json.dumps(one(args.modes[0], args.count, args.rank, args.linears, args.kept)))
        return
    path = BENCHMARKS / "merge.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for mode in args.modes:
        arguments = ["--modes", mode, *(f"--{n}={getattr(args, n)}" for n in SHARED)]
        result = subprocess.run(
            [sys.executable, "-m", "lab.measurements.merge", *arguments, "--here"], capture_output=True, text=True
        )
        if result.returncode:
            raise SystemExit(result.stderr)
        row = {"mode": mode, "erasers": args.count, "linears": args.linears, "threads": args.threads}
        row |= json.loads(result.stdout)
        rows[f"{mode} {row['rank']}"] = row
        print(row, flush=True)
    path.write_text(json.dumps({"command": "python scripts/dev.py merge", "commit": commit(), "rows": rows}, indent=1))
    lines = ["| mode | erasers | linears of 38 | threads | seconds | CPU seconds | peak GB | rank |"]
    lines.append("| --- |" + " ---: |" * 7)
    lines += [f"| {' | '.join(str(v) for v in row.values())} |" for row in rows.values()]
    path.with_suffix(".md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
