"""Times the modes that need no model at the true size of Flux.1: `python scripts/dev.py merge`.

Random erasers of the paper's targets, rank 8, 38 linears. Writes benchmarks/merge.json and merge.md: seconds, CPU
seconds of all threads and the process's peak memory of every mode, each in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from eraseanything_core.compose import merge
from eraseanything_core.compose.keys import Factors
from eraseanything_core.lora import slices
from scripts.demo import commit

OUT = Path(__file__).resolve().parent.parent / "benchmarks"
WIDTH, DUAL, SINGLE = 3072, 19, 38


def random_erasers(count: int, rank: int, linears: int) -> list[dict[str, Factors]]:
    parts = slices("paper", WIDTH, DUAL, SINGLE, 4.0)[:linears]
    torch.manual_seed(0)
    return [
        {p.key: Factors(torch.randn(p.rows, rank), torch.randn(rank, p.columns) / 50) for p in parts}
        for _ in range(count)
    ]


def one(mode: str, count: int, rank: int, linears: int) -> dict:
    """Seconds and GB of a mode in this process; the erasers are among the GB, not among the seconds."""
    erasers = random_erasers(count, rank, linears)
    begun, worked = time.monotonic(), time.process_time()
    made = merge.combined(erasers, [1.0] * count, mode, rank=0 if mode == "sum" else 64, density=0.5)
    seconds, worked = time.monotonic() - begun, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rank = len(next(iter(made.values())).down)
    return {"seconds": round(seconds, 1), "cpu_seconds": round(worked, 1), "peak_gb": round(peak, 2), "rank": rank}


def main():
    parser = argparse.ArgumentParser(prog="dev.py merge", description=__doc__)
    parser.add_argument("--modes", nargs="*", choices=merge.MODES, default=list(merge.MODES))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--linears", type=int, default=38, help="of 38; fewer for the modes that take long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        print(json.dumps(one(args.modes[0], args.count, args.rank, args.linears)))
        return
    OUT.mkdir(exist_ok=True)
    path = OUT / "merge.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for mode in args.modes:
        given = ["--modes", mode, *(f"--{n}={getattr(args, n)}" for n in ("count", "rank", "linears", "threads"))]
        told = subprocess.run([sys.executable, "-m", "scripts.merge", *given, "--here"], capture_output=True, text=True)
        if told.returncode:
            raise SystemExit(told.stderr)
        rows[mode] = {"erasers": args.count, "linears": args.linears, "threads": args.threads} | json.loads(told.stdout)
        print(mode, rows[mode], flush=True)
    path.write_text(json.dumps({"command": "python scripts/dev.py merge", "commit": commit(), "rows": rows}, indent=1))
    lines = ["| mode | erasers | linears of 38 | threads | seconds | CPU seconds | peak GB | rank |"]
    lines.append("| --- |" + " ---: |" * 7)
    lines += [f"| {m} | {' | '.join(str(v) for v in row.values())} |" for m, row in rows.items()]
    path.with_suffix(".md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
