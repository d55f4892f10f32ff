"""Ctrl-C and a scheduler's SIGTERM wait for the running step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM asked the process to end."""

    exit_code = 128 + signal.SIGTERM


class Notice(threading.Event):
    """Set by the first Ctrl-C or SIGTERM."""

    number: int = signal.SIGINT

    def error(self) -> KeyboardInterrupt:
        """Return what the signal would have raised."""
        return Terminated() if self.number == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def deferred_interrupt(active: bool) -> Iterator[Notice]:
    """Yield a notice that the first Ctrl-C or SIGTERM sets instead of raising; a second one raises.

    Args:
        active: whether to do so; outside the main thread, which alone gets signals, it is ignored.
    """
    notice = Notice()
    if not active or threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def handle(number: int, _: object) -> None:
        notice.number = number
        notice.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield notice
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
