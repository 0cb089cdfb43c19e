"""Ray, which starts workers, gives them jobs, and starts them anew elsewhere when they are lost.

Nothing here schedules, retries or places: `ActorPool` hands out jobs, `max_restarts` and `max_task_retries` bring lost
workers and their jobs back, and resources (`num_cpus`, `num_gpus`) decide where a worker runs.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..packages import require_package
from ..quoting import escaped
from .job import JUDGE, Job, Outcome, code_digest

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
def connected(machines: Machines) -> Iterator[str]:
    """A connection to Ray; a cluster that this has started ends with it.

    Yields:
        The address of Ray's dashboard; empty where there is none, or where this process was connected before.

    Raises:
        MissingPackageError: Ray is not installed.
        ValueError: there is no cluster at the address, or this process is connected to another one.
    """
    require_package("ray", "ray", "a fleet of workers")
    import ray

    if ray.is_initialized():
        check_same_cluster(machines.address)
        yield ""
        return
    try:
        context = ray.init(machines.address, log_to_driver=False) if machines.address else _own_cluster()
    except Exception as error:  # Ray raises a plain one where a node does not start in time
        raise ValueError(f"cannot reach Ray at {machines.address or 'this machine'}: {escaped(str(error))}") from error
    try:
        yield context.dashboard_url or ""
    finally:
        ray.shutdown()


def _own_cluster() -> Any:
    """Starts a cluster on this machine. Nothing is reported to Ray's makers."""
    import ray
    from ray._private import ray_constants

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Whoever reaches Ray's control ports runs code here, so they must listen on this machine only. Ray takes 127.0.0.1
    # for the address in the network, but where it builds no clusters (macOS, Windows). There is no option for that.
    builds_clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        return ray.init("local", _node_ip_address=LOOPBACK, log_to_driver=False)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = builds_clusters


def check_same_cluster(address: str) -> None:
    """Raises ValueError where this process is connected to another cluster: a process has one connection at a time."""
    import ray

    joined = ray.get_runtime_context().gcs_address
    if address not in ("", "auto") and _by_number(address) != _by_number(joined):
        raise ValueError(
            f"this process is connected to Ray at {joined} already, and not at {escaped(address)}: restart it, or "
            "leave the address empty"
        )


def _by_number(address: str) -> str:
    """host:port with the host's number in place of its name, where it has one."""
    host, _, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError:
        return address


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
    return {name: _digest(workers, f"the base {name}", base, results, look) for name, base in bases.items()}


def judge_digest(
    workers: Sequence[Any], judge: dict[str, Any], results: Path, look: Callable[[], None]
) -> dict[str, str]:
    """SHA-256 of the files of a plan's judge; for the arguments and errors see `digests`."""
    return _digest(workers, "the judge", {JUDGE: judge}, results, look)


def _digest(
    workers: Sequence[Any], name: str, asked: dict[str, Any], results: Path, look: Callable[[], None]
) -> dict[str, str]:
    answer = _wait([worker.digest.remote(asked, str(results)) for worker in workers[:1]], look)
    if "error" in answer:
        raise ValueError(f"{name}: {answer['error']}")
    files: dict[str, str] = answer["files"]
    return files


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
