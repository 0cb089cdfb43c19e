"""The runner of a worker that holds an application: trainings and pictures."""

from pathlib import Path
from typing import Any

from .fusion_job import run_fusion
from .job import DRAW, FUSE, TRAIN, Job
from .picture_job import run_pictures
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
        """SHA-256 of the files of a base, by name."""
        return self.session.digest(base)

    def run(self, job: Job, work: Path, results: Results) -> None:
        """Does a job, once it is sure that the files here are those that the plan was started with."""
        base = job.spec["base"]
        here = self._known_digest(base["loaders"])
        if here != base["files"]:
            changed = sorted(name for name in {*here, *base["files"]} if here.get(name) != base["files"].get(name))
            raise ValueError(f"{', '.join(changed)} differs here from the file that the plan was started with")
        KINDS[job.kind](self.session, job, work, results)

    def _known_digest(self, loaders: dict[str, Any]) -> dict[str, str]:
        """Read once a process: hashing 20 GB takes half a minute."""
        key = repr(loaders)
        if key not in self.digests:
            self.digests[key] = self.session.digest(loaders)
        return self.digests[key]
