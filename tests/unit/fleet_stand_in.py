"""A stand-in for an application in a worker: its jobs are chains of hashes, with a run state that can go on."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eraseanything_core import files
from eraseanything_core.fleet.job import TRAIN, Job
from eraseanything_core.fleet.results import Results

SAVE_EVERY = 5
STATE_FILE = "state.json"
LOOK_SECONDS = 0.05
PATIENCE = 1800  # seconds; only what hangs takes so long


def patiently(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call again and again while it fails, as long as `PATIENCE`."""

    def patient(*given: Any, **named: Any) -> Any:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call(*given, **named)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)

    return patient


def chain_job(seed: int, steps: int = 40, **more: Any) -> Job:
    """A job of so many steps. With `until`, the path of a file, it does not end before the file is there."""
    return Job(TRAIN, f"chain {seed}", {"seed": seed, "steps": steps, **more}, {})


class StandIn:
    """A `worker.JobRunner` that needs no torch.

    Args:
        seconds: of a step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def digest(self, base: dict[str, Any]) -> dict[str, str]:
        if not base:
            raise ValueError("there is no such file")
        return {"file": "1234"}

    def run(self, job: Job, work: Path, results: Results) -> None:
        if job.spec.get("crashes"):
            os._exit(1)
        if job.spec.get("fails"):
            raise ValueError("the model is of another family: connect FLUX.1")
        state = work / STATE_FILE
        begun = json.loads(state.read_text()) if state.exists() else {"step": 0, "value": str(job.spec["seed"])}
        value = begun["value"]
        for step in range(begun["step"], job.spec["steps"]):
            time.sleep(self.seconds)
            value = hashlib.sha256(f"{value} {step}".encode()).hexdigest()
            if (step + 1) % SAVE_EVERY == 0:
                files.write_atomic(state, json.dumps({"step": step + 1, "value": value}).encode())
        while not Path(job.spec.get("until", work)).exists():
            time.sleep(LOOK_SECONDS)
        files.write_atomic(work / "result" / "value.json", json.dumps({"value": value}).encode())
        files.write_atomic(work / "result" / "began.json", json.dumps(begun["step"]).encode())
