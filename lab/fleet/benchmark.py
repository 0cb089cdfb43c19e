"""Measures a fleet on TinyFlux: `python scripts/dev.py fleet_benchmark`. Writes benchmarks/fleet.json and .md.

The same trainings run three times: by one worker, by two, and by three on two emulated machines of which one is killed
at a random moment, ten times. All three must give the same LoRA files. Efficiency is jobs per processor second,
compared with one worker. What 100 concepts take on 8 cards is computed and not measured.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from eraseanything_core.fleet.cluster import Machines, connected, digests, run_jobs, start_workers
from eraseanything_core.fleet.expand import training_jobs
from eraseanything_core.fleet.job import Job, Outcome
from eraseanything_core.fleet.plan import Plan, concept_sets, make_plan
from eraseanything_core.fleet.results import Results
from eraseanything_core.fleet.run import comfyui_runner
from eraseanything_core.fleet.training_job import LORA_FILE
from eraseanything_core.training.run_files import STATE_FILE
from lab.fleet.command import comfyui_arguments
from lab.fleet.killer import Killer
from lab.fleet.on_paper import estimate, markdown
from lab.provenance import BENCHMARKS, CACHE, command_line, commit, write_report

CONCEPTS = ("heart", "star", "moon", "ball", "box", "tree")
KILLS = 10
BETWEEN_KILLS = (2.0, 18.0)  # seconds
RUN_STATE = f"run/{STATE_FILE}"  # of a training, in its work folder
STORE = 100 * 2**20  # bytes of a node's object store
TINYFLUX = {
    "model": {"UNETLoader": {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}},
    "clip": {"EraseAnything_TinyFlux": {"text_encoder": "tinyflux_text.safetensors"}},
}
# Enough pairs that a kill finds some saved, and few enough that this takes minutes.
SETTINGS = {
    "width": 96,
    "height": 96,
    "steps": 240,
    "sampling_steps": 4,
    "cached_trajectories": 4,
    "cached_retain_trajectories": 8,
    "sentences": 16,
    "save_every": 5,
    "monitor_every": 0,
    "stop_when_gone": False,
    "adapt_rate": False,
}


def plan_in(folder: Path) -> Plan:
    """The trainings, with their results in a folder."""
    fields = {"results": folder, "concepts": list(CONCEPTS), "bases": {"tinyflux": TINYFLUX}, "settings": SETTINGS}
    return make_plan({**fields, "methods": {"quick": {"preset": "quick"}}})


@contextmanager
def two_machines() -> Iterator[None]:
    """Two emulated machines, with room for two workers and for one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE})
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def told(done: int, total: int, outcome: Outcome | None) -> None:
    """Prints every outcome."""
    if outcome:
        print(f"{done} of {total}: {outcome.error or 'done'} in {outcome.seconds:.0f} s", flush=True)


def run(folder: Path, workers: int) -> tuple[list[Job], list[Outcome], float]:
    """Does the trainings with so many workers, on what Ray is connected to.

    Returns:
        The jobs, their outcomes, and the wall time in seconds.

    Raises:
        ValueError: a training failed.
    """
    plan = plan_in(folder)
    results = Results(folder)
    results.make()
    machines = Machines(workers=workers, gpus=0, retries=10 * KILLS)
    runner = comfyui_runner(os.environ["COMFYUI_PATH"], comfyui_arguments(cpu=True))
    start = time.monotonic()
    handles = start_workers(machines, runner, workers)
    known = digests(handles, plan.bases, folder, lambda: None)
    jobs = [eraser.training for eraser in training_jobs(plan, concept_sets(plan), known) if eraser.training]
    outcomes = run_jobs(handles, jobs, folder, told)
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise ValueError(f"{len(failed)} trainings failed: {failed[0]}")
    return jobs, outcomes, time.monotonic() - start


def hashes(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """SHA-256 of the LoRA files."""
    return [hashlib.sha256((Results(folder).result(job.id) / LORA_FILE).read_bytes()).hexdigest() for job in jobs]


def jobs_per_cpu_second(outcomes: Sequence[Outcome]) -> float:
    """Of all workers together; loading the model is part of it."""
    return len(outcomes) / sum(outcome.cpu_seconds for outcome in outcomes)


def measure(folder: Path) -> dict[str, Any]:
    """The three runs."""
    figures: dict[str, Any] = {}
    rates = {}
    files = {}
    for workers in (1, 2):
        with connected(Machines()):
            jobs, outcomes, wall = run(folder / f"workers_{workers}", workers)
        rates[workers] = jobs_per_cpu_second(outcomes)
        files[workers] = hashes(folder / f"workers_{workers}", jobs)
        figures[f"jobs_per_cpu_second_{workers}"] = round(rates[workers], 5)
        figures[f"wall_seconds_{workers}"] = round(wall, 1)
    killed = folder / "killed"
    killer = _killer(killed)
    with two_machines():
        killer.start()
        jobs, outcomes, wall = run(killed, 3)
    done_before_kills = killer.left
    killer.left = 0
    killer.join()
    killer.look()
    if done_before_kills:
        raise ValueError(f"the trainings ended {done_before_kills} kills too early: make them longer")
    attempts = [_attempts(killed, job) for job in jobs]
    return {
        "jobs": len(jobs),
        "killed": len(killer.killed),
        "done": len(killer.landed),
        "replaced": len(killer.replaced),
        "attempts": attempts,
        "equal": hashes(killed, jobs) == files[1] == files[2],
        "efficiency_2": round(rates[2] / rates[1], 3),
        **figures,
        "wall_seconds_killed": round(wall, 1),
    }


def _killer(folder: Path) -> Killer:
    results = Results(folder)
    results.make()
    return Killer(results, KILLS, BETWEEN_KILLS, RUN_STATE)


def _attempts(folder: Path, job: Job) -> int:
    record = json.loads((Results(folder).result(job.id) / "job.json").read_text(encoding="utf-8"))
    return len(record["attempts"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py fleet_benchmark", description=__doc__)
    parser.parse_args()
    folder = CACHE / "fleet_benchmark"
    shutil.rmtree(folder, ignore_errors=True)
    figures = measure(folder)
    about = {"command": command_line("fleet_benchmark"), "commit": commit(), "cpus": os.cpu_count()}
    report = {**about, **figures, "settings": SETTINGS, "on_paper": estimate()}
    write_report(BENCHMARKS / "fleet", report, markdown(report))


if __name__ == "__main__":
    main()
