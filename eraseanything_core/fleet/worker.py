"""What runs in a worker's process: one job after the other, each to its end or to a sentence that says why not."""

import importlib
import os
import platform
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

from ..quoting import escaped
from .job import Job, code_digest, job_of
from .results import Results

LONGEST_TRACE = 20_000  # characters that are kept of where a job failed


class JobRunner(Protocol):
    """Does jobs, with whatever it holds on its device; it is made once a process."""

    def digest(self, base: dict[str, Any]) -> dict[str, str]:
        """SHA-256 of the files of a base model, or of `{JUDGE: a plan's judge}`, by name.

        Raises:
            ValueError: one of them is not there.
        """

    def run(self, job: Job, work: Path, results: Results) -> None:
        """Does a job, from what an earlier attempt has left in `work`; its files go into `work`/result."""


def named(path: str) -> Any:
    """What `module:attribute` names. A worker is another process, so it gets names and not objects."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Worker:
    """One worker.

    Args:
        code: `code_digest` where the plan was started.
        runner: `module:class` of a `JobRunner`.
        settings: what it is made with.
    """

    def __init__(self, code: str, runner: str, settings: dict[str, Any]) -> None:
        self.code = code
        self.runner: JobRunner = named(runner)(**settings)

    def digest(self, base: dict[str, Any], results: str) -> dict[str, Any]:
        """{"files": SHA-256 by name}, or {"error": a sentence}."""
        try:
            self._check(Path(results))
            return {"files": self.runner.digest(base)}
        except Exception as error:
            return {"error": reason(error)}

    def _check(self, results: Path) -> None:
        """Raises ValueError where this machine cannot give the results of the one that started the plan."""
        check_shared(results)
        if code_digest() != self.code:
            raise ValueError(
                f"{platform.node()} has another state of this pack than the machine that started the plan: give all "
                "machines the same, and start the plan again"
            )

    def run(self, job_as_dict: dict[str, Any], results: str) -> dict[str, Any]:
        """Does a job and lands its result.

        Returns:
            The fields of an `Outcome`: plain values, since an exception of ours may be unknown where it is read.
        """
        job = job_of(job_as_dict)
        folder = Results(Path(results))
        start = time.monotonic()
        cpu_start = time.process_time()
        attempt = {"host": platform.node(), "pid": os.getpid()}
        error = ""
        try:
            self._check(folder.folder)
            # Ray asks again where a worker was lost after its result had landed, and before it had cleared up.
            if folder.is_done(job.id):
                folder.clear(job.id)
            else:
                work = folder.begin(job, attempt)
                self.runner.run(job, work, folder)
                folder.land(job, attempt)
        except Exception as problem:
            error = reason(problem)
            keep_failure(folder, job, error)
        return {
            # Not `job.id`: other code may give it another one, and is refused in the sentence above.
            "job": job_as_dict["id"],
            "error": error,
            "seconds": time.monotonic() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "host": attempt["host"],
        }


def keep_failure(folder: Results, job: Job, error: str) -> None:
    """Writes why a job failed, and where in the code; called while the exception is handled."""
    if folder.failed.is_dir():
        folder.fail(job, error, traceback.format_exc()[-LONGEST_TRACE:])


def reason(error: Exception) -> str:
    """An exception as a sentence. The messages of this pack are ones; for any other its kind stands in front."""
    text = escaped(" ".join(str(error).split()))
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def check_shared(results: Path) -> None:
    """Raises ValueError where a machine does not see the results folder."""
    if not (results / "done").is_dir():
        raise ValueError(
            f"{platform.node()} does not see the results folder {results}: choose a folder that all machines share"
        )
