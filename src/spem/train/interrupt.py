"""Ctrl-C that waits for the running step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(active: bool) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets instead of raising; a second one raises.

    Args:
        active: whether to do so; outside the main thread, which alone gets signals, it is ignored.
    """
    event = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
