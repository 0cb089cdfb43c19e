"""A job: one training, one share of a prompt set that is drawn and judged, or one LoRA of several erasers."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..version import VERSION

TRAIN = "train"
DRAW = "draw"
FUSE = "fuse"
JUDGE = "judge"  # in place of a base's parts, where the hashes of a judge's files are asked for
FORMAT = 1  # of what is hashed: another way to say the same must not look like the same job
ID_DIGITS = 20  # hexadecimal: 80 bits
CORE = Path(__file__).resolve().parents[1]
CODE = (".py", ".json", ".safetensors")  # what decides results: modules, tables, and the weights that are shipped


@cache
def code_digest() -> str:
    """SHA-256 of the core's code and tables, as they were when this process first asked."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CORE.rglob("*") if path.suffix in CODE):
        digest.update(path.relative_to(CORE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Job:
    """What one worker does in one piece.

    Attributes:
        kind: TRAIN, DRAW or FUSE.
        label: what people call it; it decides nothing.
        spec: all that decides the result, as JSON holds it. Files are in it by their SHA-256.
        places: where files of `spec` lie; they decide nothing either.
    """

    kind: str
    label: str
    spec: dict[str, Any]
    places: dict[str, str]

    @property
    def id(self) -> str:
        """A hash of the kind, of all that decides the result, and of the pack's version and code."""
        deciding = json.dumps([FORMAT, VERSION, code_digest(), self.kind, self.spec], sort_keys=True)
        return hashlib.sha256(deciding.encode()).hexdigest()[:ID_DIGITS]

    def as_dict(self) -> dict[str, Any]:
        """The job as plain JSON, as it is sent to a worker and kept with its result; `id` is in it."""
        return {"id": self.id, **asdict(self)}


def job_of(plain: dict[str, Any]) -> Job:
    """The job of `Job.as_dict`."""
    return Job(**{name: value for name, value in plain.items() if name != "id"})


def file_name(*parts: str) -> str:
    """A plain file name of words: letters, digits and _ of each, with a dot between them."""
    plain = [re.sub(r"\W+", "_", part.strip()).strip("_") for part in parts]
    return ".".join(part[:60] for part in plain if part)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: its id.
        error: why it failed; empty where its result has landed.
        seconds: that the attempt took which ended it.
        cpu_seconds: processor time of that attempt.
        host: the machine.
    """

    job: str
    error: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    host: str = ""
