"""An interrupt and a SIGTERM in the middle of a pair."""

import os
import signal
import threading
import time
from collections.abc import Callable

import comfy.model_management as management
import torch

from eraseanything_core.training.recipe import train_eraser
from eraseanything_core.training.termination import defer_sigterm
from eraseanything_core.training.trainer import EraseResult
from lab.gpu.card import Card
from lab.gpu.hosts import LabHost, short_config, tinyflux_host
from lab.gpu.outcome import Outcome

PAIRS = 400
AFTER = 3  # pairs that run before the signal
LATER = 1.0  # seconds beyond one pair until the run is back


class Signalled:
    """A run to which something happens in its fourth pair.

    Args:
        signal_now: what happens.
    """

    def __init__(self, signal_now: Callable[[], None]) -> None:
        self.signal_now = signal_now
        self.ends: list[float] = []
        self.sent = 0.0

    def progress(self, pairs: int, _: dict[str, float]) -> None:
        """After every pair."""
        self.ends.append(time.monotonic())
        if pairs == AFTER:
            pair = self.ends[-1] - self.ends[-2]
            threading.Timer(pair / 2, self._send).start()

    def _send(self) -> None:
        self.sent = time.monotonic()
        self.signal_now()

    def run(self, host: LabHost) -> tuple[EraseResult, float, float]:
        """The result, the seconds from the signal to the end, and those of a pair."""
        result = train_eraser(host, short_config(PAIRS, deterministic=True, refresh_every=PAIRS), self.progress)
        pair = (self.ends[AFTER - 1] - self.ends[0]) / (AFTER - 1)
        return result, time.monotonic() - self.sent, pair


def check(card: Card) -> Outcome:
    """Check 12: back within a pair and a second, and the LoRA is that of the last whole pair bit for bit."""
    outcome = Outcome()
    host = tinyflux_host(dtype=torch.float32 if card.tiny else torch.bfloat16)

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for name, happens in (("interrupt", management.interrupt_current_processing), ("SIGTERM", terminate)):
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            with defer_sigterm(management.interrupt_current_processing, lambda function: function()):
                result, seconds, pair = Signalled(happens).run(host)
        finally:
            signal.signal(signal.SIGTERM, before)
            management.interrupt_current_processing(False)
        outcome.must(f"{name}: the run says so", result.interrupted and AFTER <= result.steps < PAIRS)
        outcome.at_most(f"{name}: seconds until it is back", seconds, pair + LATER)
        same = same_as_whole(host, result)
        outcome.must(f"{name}: the last whole pair, bit for bit", same)
    return outcome


def same_as_whole(host: LabHost, result: EraseResult) -> bool:
    """Whether a run of so many pairs, never stopped, has the same bits."""

    def stop(pairs: int, _: dict[str, float]) -> None:
        if pairs == result.steps:
            raise KeyboardInterrupt

    whole = train_eraser(host, short_config(PAIRS, deterministic=True, refresh_every=PAIRS), stop)
    return all(torch.equal(whole.lora[name], result.lora[name]) for name in result.lora)
