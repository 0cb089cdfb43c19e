"""Does what is missing of a plan on Ray's workers: `python scripts/dev.py fleet plan.yaml`.

docs/fleet.md says what a plan holds. A second call does what is missing; jobs that were stopped go on. The exit code
is 1 where a job failed.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eraseanything_core.fleet.job import Outcome
from eraseanything_core.fleet.plan import Plan, read_plan
from eraseanything_core.fleet.run import comfyui_runner, machines_of, run_plan
from eraseanything_core.packages import MissingPackageError
from lab.provenance import ROOT

GATHERED = "gathered"  # the folder in that of the results


class Bar:
    """A progress bar of jobs; a second set of jobs begins it anew."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, done: int, total: int, outcome: Outcome | None) -> None:
        if self.bar is None or self.bar.total != total or done < self.bar.n:
            self.close()
            self.bar = tqdm(total=total, unit="job", dynamic_ncols=True)
        if outcome is None:
            return
        self.bar.update(done - self.bar.n)
        if outcome.error:
            self.bar.write(f"failed: {outcome.error}")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def comfyui_arguments(cpu: bool) -> list[str]:
    """The command line of ComfyUI in every worker."""
    arguments = ["--cpu"] if cpu else []
    if "COMFYUI_BASE" in os.environ:
        arguments += ["--base-directory", os.environ["COMFYUI_BASE"]]
    return arguments


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py fleet", description=__doc__)
    parser.add_argument("plan", type=Path, help="a YAML file")
    parser.add_argument("--address", default="", help="of a running Ray cluster; none starts one on this machine")
    parser.add_argument("--out", type=Path, help=f"where to gather; else {GATHERED} in the folder of the results")
    parser.add_argument("--cpu", action="store_true", help="workers leave GPUs alone")
    return parser.parse_args()


def run(plan: Plan, args: argparse.Namespace) -> int:
    """Runs a plan and prints its summary; returns an exit code."""
    machines = machines_of(plan, args.address, [str(ROOT)])
    runner = comfyui_runner(os.environ["COMFYUI_PATH"], comfyui_arguments(args.cpu))
    folder = args.out or plan.results / GATHERED
    bar = Bar()
    try:
        result = run_plan(plan, machines, runner, folder, folder / "loras", bar, lambda: None, tell=print)
    finally:
        bar.close()
    print(f"{result.summary()}\n{folder} has the table, the reports and the LoRAs")
    return 1 if result.failed else 0


def main() -> int:
    """Reads the plan and runs it; what is wrong is one sentence."""
    args = parse()
    try:
        return run(read_plan(args.plan), args)
    except (ValueError, OSError, MissingPackageError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
