"""SIGINT and SIGTERM as an event, for work that must not be torn in the middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn a SIGINT or SIGTERM inside the block into an event that the block looks at; a second SIGINT interrupts.

    SIGTERM is how schedulers and launchers of several processes ask for an end; they insist with SIGKILL, and may
    pass on a SIGINT that has come before, so that a SIGTERM never counts as the second one.
    Outside the main thread, where Python delivers no signals, nothing is changed.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
