"""Lets a running training finish its step and save before SIGTERM ends the process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def defer_sigterm(interrupt: Callable[[], None], in_main_thread: Callable[[Callable[[], None]], Any]) -> Iterator[None]:
    """Turns SIGTERM into an interrupt inside the context, and raises it again at the end.

    Args:
        interrupt: asks the work to stop soon.
        in_main_thread: runs a function in the main thread, now or soon, and keeps the order of its calls. Python
            lets only that thread set signal handlers.
    """
    received = threading.Event()
    previous: list[Any] = []  # the handler from before; set in the main thread, perhaps later than this line

    def handle(signal_number: int, frame: Any) -> None:
        received.set()
        interrupt()

    def install() -> None:
        previous.append(signal.signal(signal.SIGTERM, handle))

    def restore() -> None:
        signal.signal(signal.SIGTERM, previous[0])

    in_main_thread(install)
    try:
        yield
    finally:
        in_main_thread(restore)
        if received.is_set():
            # After `restore`, so the process now ends as it would have without this context.
            in_main_thread(lambda: signal.raise_signal(signal.SIGTERM))
