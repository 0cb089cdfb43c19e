"""Kills workers of a fleet at random moments, and looks whether a result that has landed is ever replaced."""

import os
import random
import signal
import threading
import time

from eraseanything_core.fleet.results import Results

LOOK_SECONDS = 0.02


class Killer(threading.Thread):
    """A thread that ends once it has killed so many workers.

    Its first kill hits a job that has a run state, so that one attempt at least has something to go on from. All
    others come at random moments.

    Args:
        results: where the workers note their attempts; they run on this machine.
        kills: how many.
        seconds: shortest and longest time between two kills.
        state: path of a run state in the work folder of a job.

    Attributes:
        killed: process ids.
        landed: the file system's number of each result's folder, as first seen.
        replaced: results that were another folder later on.
    """

    def __init__(self, results: Results, kills: int, seconds: tuple[float, float], state: str) -> None:
        super().__init__(daemon=True)
        self.results = results
        self.left = kills
        self.seconds = seconds
        self.state = state
        self.killed: list[int] = []
        self.landed: dict[str, int] = {}
        self.replaced: list[str] = []
        self.random = random.Random(0)

    def run(self) -> None:
        """Kills, until none is left to do."""
        until = time.monotonic()
        while self.left:
            time.sleep(LOOK_SECONDS)
            self.look()
            if time.monotonic() >= until and self.kill():
                until = time.monotonic() + self.random.uniform(*self.seconds)

    def look(self) -> None:
        """Notes results that are new, and those that are not what they were."""
        for folder in self.results.done.iterdir():
            number = folder.stat().st_ino
            if self.landed.setdefault(folder.name, number) != number:
                self.replaced.append(folder.name)

    def kill(self) -> bool:
        """Kills a worker that is at a job; whether there was one."""
        busy = self.busy()
        if not busy:
            return False
        job, pid = self.random.choice(busy)
        try:
            if not self.killed and not self.stopped_with_state(job, pid):
                return False
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # its last job has landed in this moment, and it was ended
            return False
        self.killed.append(pid)
        self.left -= 1
        return True

    def stopped_with_state(self, job: str, pid: int) -> bool:
        """Stops a process that is at a job with a run state; else leaves it running."""
        # Stopped before it is looked at: it could end its job between the look and the kill.
        os.kill(pid, signal.SIGSTOP)
        at_it = (job, pid) in self.busy() and not self.results.is_done(job)
        if at_it and (self.results.work / job / self.state).exists():
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    def busy(self) -> list[tuple[str, int]]:
        """The jobs that are worked at, each with its process."""
        found = []
        for folder in self.results.work.iterdir():
            try:
                attempts = self.results.attempts(folder.name)
            except FileNotFoundError:  # it has landed in this moment
                continue
            if attempts and attempts[-1]["pid"] not in self.killed:
                found.append((folder.name, attempts[-1]["pid"]))
        return found
