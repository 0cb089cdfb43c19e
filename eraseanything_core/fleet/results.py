"""The folder in which workers keep what they are at and leave what is done. All machines must see it.

done/<id>/      the result of a job, put there by one rename
work/<id>/      a job in progress: its run state, its attempts, and the result that is being made
failed/<id>.json    why a job failed; it is tried again when the plan is run again
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files
from .job import Job

JOB_FILE = "job.json"  # in every result: the job and its attempts


class Results:
    """A results folder.

    Args:
        folder: of one plan, or of several: jobs are told apart by their ids.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = folder / "done"
        self.work = folder / "work"
        self.failed = folder / "failed"

    def make(self) -> None:
        """Makes the folders; raises ValueError where they do not take files."""
        for folder in (self.done, self.work, self.failed):
            files.check_folder(folder)

    def is_done(self, job: str) -> bool:
        """Whether the result of a job has landed."""
        return (self.done / job / JOB_FILE).exists()

    def result(self, job: str) -> Path:
        """The folder of a result."""
        return self.done / job

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose result has not landed, each once, in their order."""
        by_id = {job.id: job for job in jobs}
        return [job for name, job in by_id.items() if not self.is_done(name)]

    def begin(self, job: Job, attempt: dict[str, Any]) -> Path:
        """Notes an attempt at a job, and returns its work folder with what earlier attempts have left there."""
        work = self.work / job.id
        attempts = work / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        (work / "result").mkdir(exist_ok=True)
        # A file each: two machines cannot append to one file safely.
        files.write_atomic(attempts / f"{uuid.uuid4().hex}.json", json.dumps(attempt).encode())
        return work

    def attempts(self, job: str) -> list[dict[str, Any]]:
        """The attempts at a job that has not landed."""
        paths = sorted((self.work / job / "attempts").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def land(self, job: Job, attempt: dict[str, Any]) -> bool:
        """Puts a finished result into `done` by one rename; whether it was this one that landed.

        Args:
            job: the job, whose work folder holds the whole `result`.
            attempt: that made it.
        """
        work = self.work / job.id
        record = {**job.as_dict(), "attempts": self.attempts(job.id), "landed": attempt}
        files.write_atomic(work / "result" / JOB_FILE, (json.dumps(record, indent=1) + "\n").encode())
        landed = self._rename(work / "result", self.result(job.id))
        self.clear(job.id)
        return landed

    def _rename(self, source: Path, target: Path) -> bool:
        try:
            # A folder never replaces one that holds something: whoever comes second is refused.
            source.rename(target)
        except OSError:
            if not (target / JOB_FILE).exists():
                raise
            return False
        return True

    def clear(self, job: str) -> None:
        """Removes what earlier attempts at a job that has landed have left."""
        (self.failed / f"{job}.json").unlink(missing_ok=True)
        shutil.rmtree(self.work / job, ignore_errors=True)

    def fail(self, job: Job, error: str, details: str = "") -> None:
        """Keeps why a job failed; its run state stays, and another try goes on from it."""
        record = {"id": job.id, "label": job.label, "error": error, "details": details}
        files.write_atomic(self.failed / f"{job.id}.json", (json.dumps(record, indent=1) + "\n").encode())
