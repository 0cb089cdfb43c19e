"""Runs one named step of the set-up: says its name, keeps its log, and fails with what to do about it."""

import hashlib
import os
import subprocess
from collections import deque
from pathlib import Path

INTERRUPTED = (
    "IncompleteRead",
    "incomplete-download",
    "ProtocolError",
    "Connection broken",
    "Connection reset",
    "Connection aborted",
    "ReadTimeout",
    "Read timed out",
    "RemoteDisconnected",
)


class StepFailed(Exception):
    """A step of the set-up that did not work; the message says which and what to do."""


def python_in(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def pip_install(python: Path) -> list:
    """The start of a command that installs into an interpreter's environment; Python compiles what it imports."""
    return [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]


def content_hash(*parts: object) -> str:
    """Hashes what a step installs: paths by their bytes, anything else by its text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log file, indented."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        return "".join("    " + line.rstrip() + "\n" for line in deque(stream, lines))


def interrupted(text: str) -> bool:
    """Whether pip's output tells of a transfer that broke off, which is worth another try."""
    return any(word in text for word in INTERRUPTED)


class Steps:
    """The steps of one environment, each done once for what it installs.

    Args:
        stamps: folder with the content hash of every step done, inside the environment so that both go
            away together.
        log: file that takes the output of every command.
    """

    def __init__(self, stamps: Path, log: Path):
        self.stamps = stamps
        self.log = log

    def done(self, name: str, stamp: str) -> bool:
        """Whether the step was done before with the same content."""
        path = self.stamps / name
        return path.exists() and path.read_text() == stamp

    def finish(self, name: str, stamp: str) -> None:
        """Notes that a step is done."""
        self.stamps.mkdir(parents=True, exist_ok=True)
        (self.stamps / name).write_text(stamp)

    def once(self, name: str, commands: list[list], advice: str, inputs: tuple = ()) -> None:
        """Runs a step unless it was done before with the same commands and inputs."""
        stamp = content_hash(*inputs, *(str(argument) for command in commands for argument in command))
        if not self.done(name, stamp):
            self.run(name, commands, advice)
            self.finish(name, stamp)

    def run(self, name: str, commands: list[list], advice: str) -> None:
        """Runs the commands of a step in order.

        Raises:
            StepFailed: with the step, the end of the log and the advice.
        """
        print(f"setup: {name} ...", flush=True)
        for command in commands:
            if not self.call([str(argument) for argument in command]):
                end = f"{tail(self.log)}  {advice}\n  The full log is {self.log}"
                raise StepFailed(f"setup: {name} failed\n{end}")

    def call(self, command: list[str]) -> bool:
        """Runs a command into the log, once more if a download broke off."""
        code, output = self.attempt(command)
        if code and interrupted(output):
            print("setup: the download was interrupted, once more ...", flush=True)
            code, _ = self.attempt(command)
        return code == 0

    def attempt(self, command: list[str]) -> tuple[int, str]:
        """Runs a command once; its exit code and its output."""
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{result.stdout}\n")
        return result.returncode, result.stdout
