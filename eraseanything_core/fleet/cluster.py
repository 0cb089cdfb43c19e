"""Ray, which starts workers, gives them jobs, and starts them anew elsewhere when they are lost.

Nothing here schedules, retries or places: `ActorPool` hands out jobs, `max_restarts` and `max_task_retries` bring lost
workers and their jobs back, and resources (`num_cpus`, `num_gpus`) decide where a worker runs.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..packages import require_package
from ..quoting import escaped
from .job import Job, Outcome
from .worker import code_digest

PACK = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 1.0  # between two looks at whether the user has cancelled
PATIENCE_SECONDS = 600  # a first worker has started by then
LOOPBACK = "127.0.0.1"
WORKER = "eraseanything_core.fleet.worker:Worker"

Progress = Callable[[int, int, Outcome | None], None]  # (jobs done, of so many, the last one or None)


@dataclass(frozen=True)
class Machines:
    """Where and how workers run.

    Attributes:
        address: of a Ray cluster; empty starts one on this machine.
        workers: how many; 0 is as many as the cluster has room for.
        gpus, cpus: of each worker.
        retries: how often a job whose worker was lost is given to another.
        paths: put in front of Python's path in every worker.
    """

    address: str = ""
    workers: int = 0
    gpus: float = 1.0
    cpus: float = 1.0
    retries: int = 20
    paths: tuple[str, ...] = (str(PACK),)


@dataclass(frozen=True)
class Runner:
    """What every worker makes for itself; see `worker.Worker`."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@contextmanager
def connected(machines: Machines) -> Iterator[None]:
    """A connection to Ray; a cluster that this has started ends with it.

    Raises:
        MissingPackageError: Ray is not installed.
        ValueError: there is no cluster at the address.
    """
    require_package("ray", "ray", "a fleet of workers")
    import ray

    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {"address": machines.address}
    if not machines.address:
        # Whoever reaches Ray's control ports runs code here: they listen on this machine only. And nothing is reported
        # to Ray's makers.
        own = {"address": "local", "_node_ip_address": LOOPBACK}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(**own, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"cannot reach Ray at {machines.address or 'this machine'}: {escaped(str(error))}") from error
    try:
        yield
    finally:
        ray.shutdown()


def start_workers(machines: Machines, runner: Runner, most: int) -> list[Any]:
    """Handles of workers, which Ray starts where there is room.

    Args:
        machines: where and how.
        runner: what each of them makes.
        most: no more than there are jobs.

    Raises:
        ValueError: no machine of the cluster has room for one.
    """
    import ray

    room = workers_that_fit(machines)
    if not room:
        raise ValueError(
            f"no machine of the cluster has {machines.gpus:g} GPUs and {machines.cpus:g} CPUs for a worker: ask for "
            "less in `workers`"
        )
    options = {
        "num_cpus": machines.cpus,
        "num_gpus": machines.gpus,
        "max_restarts": -1,
        "max_task_retries": machines.retries,
    }
    worker = ray.remote(_remote_class()).options(**options)
    made = [list(machines.paths), WORKER, code_digest(), runner.name, runner.settings]
    return [worker.remote(*made) for _ in range(min(machines.workers or room, most))]


def workers_that_fit(machines: Machines) -> int:
    """How many workers the machines of the cluster have room for."""
    import ray

    wanted = {"CPU": machines.cpus, "GPU": machines.gpus}
    total = 0
    for node in ray.nodes():
        if node["Alive"]:
            rooms = [int(node["Resources"].get(name, 0) // count) for name, count in wanted.items() if count]
            total += min(rooms, default=0)
    return total


def _remote_class() -> type:
    """A class that a worker's process makes a `Worker` of.

    It is defined in a function, so that Ray sends its code and not its name: inside ComfyUI the pack has another name
    than in a worker.
    """

    class EraseWorker:
        def __init__(self, paths: list[str], worker: str, *arguments: Any) -> None:
            import importlib
            import sys

            sys.path[:0] = paths
            module, _, name = worker.partition(":")
            self.worker = getattr(importlib.import_module(module), name)(*arguments)

        def digest(self, base: dict[str, Any], results: str) -> dict[str, Any]:
            return self.worker.digest(base, results)

        def run(self, job: dict[str, Any], results: str) -> dict[str, Any]:
            return self.worker.run(job, results)

    return EraseWorker


def digests(
    workers: Sequence[Any], bases: Mapping[str, dict[str, Any]], results: Path, look: Callable[[], None]
) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of every base, as the first worker that answers sees them.

    Args:
        workers: of `start_workers`.
        bases: by name.
        results: the shared folder.
        look: called every second; what it raises ends the waiting.

    Raises:
        ValueError: a file is missing, or a worker does not see the results folder.
        TimeoutError: no worker has started.
    """
    found = {}
    for name, base in bases.items():
        answer = _wait([worker.digest.remote(base, str(results)) for worker in workers[:1]], look)
        if "error" in answer:
            raise ValueError(f"the base {name}: {answer['error']}")
        found[name] = answer["files"]
    return found


def _wait(references: Sequence[Any], look: Callable[[], None]) -> dict[str, Any]:
    import ray

    for _ in range(int(PATIENCE_SECONDS / LOOK_SECONDS)):
        look()
        ready, _ = ray.wait(list(references), timeout=LOOK_SECONDS)
        if ready:
            answer: dict[str, Any] = ray.get(ready[0])
            return answer
    raise TimeoutError(f"no worker has started in {PATIENCE_SECONDS} s: see Ray's dashboard or `ray status`")


def run_jobs(workers: Sequence[Any], jobs: Sequence[Job], results: Path, progress: Progress) -> list[Outcome]:
    """Gives jobs to workers until each has an outcome, and ends the workers.

    Args:
        workers: of `start_workers`.
        jobs: whose results are missing.
        results: the shared folder.
        progress: called after every outcome, and with None every second; what it raises ends the run.

    Returns:
        One outcome a job, in the order in which they ended.
    """
    import ray
    from ray.util import ActorPool

    pool = ActorPool(list(workers))
    try:
        for job in jobs:
            pool.submit(lambda worker, job: worker.run.remote(job.as_dict(), str(results)), job)
        return _outcomes(pool, jobs, progress)
    finally:
        for worker in workers:
            ray.kill(worker)


def _outcomes(pool: Any, jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
    from ray.exceptions import RayError

    outcomes: list[Outcome] = []
    losses: list[str] = []
    while pool.has_next():
        _end_idle(pool)
        try:
            outcome = Outcome(**pool.get_next_unordered(timeout=LOOK_SECONDS))
        except TimeoutError:
            progress(len(outcomes), len(jobs), None)
        except RayError as error:
            # Ray has given up: the worker was lost with this job more often than `retries`.
            losses.append(escaped(str(error)))
        else:
            outcomes.append(outcome)
            progress(len(outcomes), len(jobs), outcome)
    return outcomes + lost_outcomes(jobs, outcomes, losses)


def _end_idle(pool: Any) -> None:
    """Ends workers for which there is no job left, so that Ray can start a lost one on their device."""
    import ray

    while (worker := pool.pop_idle()) is not None:
        ray.kill(worker)


def lost_outcomes(jobs: Sequence[Job], outcomes: Sequence[Outcome], losses: Sequence[str]) -> list[Outcome]:
    """Outcomes of the jobs that no worker has answered for."""
    answered = {outcome.job for outcome in outcomes}
    why = f"its worker was lost again and again: {losses[-1]}" if losses else "no worker was left"
    return [Outcome(job.id, error=why) for job in jobs if job.id not in answered]
