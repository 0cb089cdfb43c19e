"""SIGTERM while something is being made: it is finished and kept first, then the process ends as it was told."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager


@contextmanager
def kept_on_sigterm(interrupt: Callable[[], None], in_main_thread: Callable[[Callable[[], None]], None]):
    """Turns SIGTERM into an interrupt for as long as the context lasts, and passes it on when it ends.

    Args:
        interrupt: asks the work to stop soon.
        in_main_thread: runs a function there, now or soon and in order; only that thread may set handlers.
    """
    asked, before = threading.Event(), []

    def handle(*_):
        asked.set()
        interrupt()

    in_main_thread(lambda: before.append(signal.signal(signal.SIGTERM, handle)))
    try:
        yield
    finally:
        in_main_thread(lambda: signal.signal(signal.SIGTERM, before[0]))
        if asked.is_set():
            in_main_thread(lambda: signal.raise_signal(signal.SIGTERM))
