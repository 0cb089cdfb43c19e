"""A whole plan: what is missing is done by Ray's workers, and what is there is gathered."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Machines, Progress, Runner, connected, digests, judge_digest, run_jobs, start_workers
from .expand import Eraser, fusion_jobs, training_jobs, with_pictures
from .gather import Gathered, gather
from .job import FUSE, Job, Outcome
from .plan import Plan, concept_sets
from .results import Results

SESSION = "eraseanything_core.comfy_bridge.headless:HeadlessComfyUI"
SESSION_RUNNER = "eraseanything_core.fleet.session_runner:SessionRunner"
Look = Callable[[], None]
MOST_FAILURES = 20  # that a summary spells out
NO_DASHBOARD = 'Ray has no dashboard here; `pip install "ray[default]"` brings it'


@dataclass(frozen=True)
class FleetResult:
    """What became of a plan.

    Attributes:
        jobs: how many jobs the plan has.
        before: how many of them were done before.
        failed: a sentence a job that failed or could not begin, with its label.
        gathered: what was written.
    """

    jobs: int
    before: int
    failed: list[str]
    gathered: Gathered

    def summary(self) -> str:
        """What was done, and what failed and why."""
        done = self.jobs - len(self.failed)
        lines = [f"{done} of {self.jobs} jobs are done, {self.before} of them before; {len(self.failed)} failed"]
        lines += [f"failed: {sentence}" for sentence in self.failed[:MOST_FAILURES]]
        if len(self.failed) > MOST_FAILURES:
            lines.append(f"and {len(self.failed) - MOST_FAILURES} more failed; the folder `failed` has all")
        return "\n".join([*lines, *self.gathered.notes])


def comfyui_runner(comfyui: str, arguments: Sequence[str]) -> Runner:
    """Workers that hold a headless ComfyUI; see `comfy_bridge.headless`."""
    settings = {"comfyui": comfyui, "arguments": list(arguments)}
    return Runner(SESSION_RUNNER, {"session": SESSION, "settings": settings})


def machines_of(plan: Plan, address: str, paths: Sequence[str]) -> Machines:
    """Where and how the workers of a plan run."""
    workers = plan.workers
    return Machines(address, workers.count, workers.gpus, workers.cpus, workers.retries, tuple(paths))


def run_plan(
    plan: Plan,
    machines: Machines,
    runner: Runner,
    folder: Path,
    loras: Path,
    progress: Progress,
    look: Look,
    tell: Callable[[str], None] = logging.info,
) -> FleetResult:
    """Does what is missing of a plan and gathers what is done.

    Args:
        plan: the plan.
        machines: where the workers run.
        runner: what each worker makes for itself.
        folder, loras: where what is gathered goes, see `gather.gather`.
        progress: see `cluster.run_jobs`; it is called for the trainings, then for the pictures.
        look: called every second while workers start; what it raises ends the run.
        tell: called with where Ray's dashboard is.

    Raises:
        MissingPackageError: Ray is not installed.
        ValueError: the plan cannot work here.
    """
    results = Results(plan.results)
    results.make()
    words = concept_sets(plan)
    with connected(machines) as dashboard:
        tell(f"Ray's dashboard: http://{dashboard}" if dashboard else NO_DASHBOARD)
        trainings_at_most = len(words) * len(plan.bases) * len(plan.methods) * len(plan.seeds)
        workers = start_workers(machines, runner, trainings_at_most)
        known = digests(workers, plan.bases, results.folder, look)
        trained = training_jobs(plan, words, known)
        erasers = with_pictures(plan, trained, known, _judge_files(plan, workers, results, look))
        trainings = _unique([eraser.training for eraser in erasers if eraser.training])
        # What needs erasers that are done: they are drawn with, and fused.
        later = [*_drawings(erasers), *fusion_jobs(plan, erasers).values()]
        jobs = [*trainings, *later]
        before = len(jobs) - len(results.missing(jobs))
        outcomes = run_jobs(workers, results.missing(trainings), results.folder, progress)
        ready, blocked = _ready(results.missing(later), results)
        if ready:
            workers = start_workers(machines, runner, len(ready))
            outcomes += run_jobs(workers, ready, results.folder, progress)
    failed = failures(jobs, outcomes, blocked)
    return FleetResult(len(jobs), before, failed, gather(plan, erasers, results, folder, loras))


def _judge_files(plan: Plan, workers: Sequence[Any], results: Results, look: Look) -> dict[str, str]:
    """Hashes of the judge's files, of the first worker; none where nothing is judged."""
    if not plan.pictures or not plan.pictures.judge:
        return {}
    return judge_digest(workers, plan.pictures.judge.model_dump(), results.folder, look)


def _unique(jobs: Sequence[Job]) -> list[Job]:
    return list({job.id: job for job in jobs}.values())


def _drawings(erasers: Sequence[Eraser]) -> list[Job]:
    jobs: list[Job] = []
    for eraser in erasers:
        for shares in eraser.shares.values():
            jobs += [*shares.before, *shares.after]
    return _unique(jobs)


def _ready(jobs: Sequence[Job], results: Results) -> tuple[list[Job], list[Job]]:
    """The jobs whose erasers are there, and those for which a training failed."""
    ready: list[Job] = []
    blocked: list[Job] = []
    for job in jobs:
        are_there = all(results.is_done(training) for training in _trainings_of(job))
        (ready if are_there else blocked).append(job)
    return ready, blocked


def _trainings_of(job: Job) -> list[str]:
    """The trainings that must be done before a job."""
    if job.kind == FUSE:
        return list(job.spec["trainings"])
    training = (job.spec["eraser"] or {}).get("job")
    return [training] if training else []


def failures(jobs: Sequence[Job], outcomes: Sequence[Outcome], blocked: Sequence[Job]) -> list[str]:
    """A sentence a job that has no result, with its label."""
    labels = {job.id: job.label for job in jobs}
    failed = [f"{labels[outcome.job]}: {outcome.error}" for outcome in outcomes if outcome.error]
    return failed + [f"{job.label}: the training of its eraser failed" for job in blocked]
