"""The runner of a worker that holds an application: trainings and pictures."""

from pathlib import Path
from typing import Any

from .fusion_job import run_fusion
from .job import DRAW, FUSE, JUDGE, TRAIN, Job
from .picture_job import judge_files, run_pictures
from .results import Results
from .session import Session
from .training_job import run_training
from .worker import named

KINDS = {TRAIN: run_training, DRAW: run_pictures, FUSE: run_fusion}


class SessionRunner:
    """A `worker.JobRunner` on an application.

    Args:
        session: `module:class` of a `Session`.
        settings: what it is made with.
    """

    def __init__(self, session: str, settings: dict[str, Any]) -> None:
        self.path = session
        self.settings = settings
        self.opened: Session | None = None
        self.digests: dict[str, dict[str, str]] = {}

    @property
    def session(self) -> Session:
        """The application, started when it is first needed: what then goes wrong is told as that of a job."""
        if self.opened is None:
            self.opened = named(self.path)(**self.settings)
        return self.opened

    def digest(self, base: dict[str, Any]) -> dict[str, str]:
        """SHA-256 of the files of a base, or of `{JUDGE: a plan's judge}`, by name."""
        if JUDGE in base:
            return judge_files(base[JUDGE], self.session.judges)
        return self.session.digest(base)

    def run(self, job: Job, work: Path, results: Results) -> None:
        """Does a job, once it is sure that the files here are those that the plan was started with."""
        base = job.spec["base"]
        self._check(base["loaders"], base["files"])
        if job.spec.get("judge"):
            self._check({JUDGE: job.spec["judge"]}, job.spec["judge_files"])
        KINDS[job.kind](self.session, job, work, results)

    def _check(self, asked: dict[str, Any], expected: dict[str, str]) -> None:
        """Raises ValueError where files differ here."""
        here = self._known_digest(asked)
        if here != expected:
            changed = sorted(name for name in {*here, *expected} if here.get(name) != expected.get(name))
            raise ValueError(f"{', '.join(changed)} differs here from the file that the plan was started with")

    def _known_digest(self, asked: dict[str, Any]) -> dict[str, str]:
        """Read once a process: hashing 20 GB takes half a minute."""
        key = repr(asked)
        if key not in self.digests:
            self.digests[key] = self.digest(asked)
        return self.digests[key]
