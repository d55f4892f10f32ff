"""What a file that somebody sends may cost: processor time and memory."""

import re
import time
from contextlib import contextmanager
from pathlib import Path

SECONDS, MEGABYTES = 2, 300
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def limits(what):
    """Fail where the block takes too much processor time, or memory above what is in use.

    Args:
        what: is done, for the message.
    """
    before, started = _read_memory(reset=True)["VmRSS"], time.process_time()
    yield
    seconds = time.process_time() - started
    grown = (_read_memory()["VmHWM"] - before) / 1024
    assert seconds < SECONDS, f"{what} took {seconds:.1f} s"
    assert grown < MEGABYTES, f"{what} took {grown:.0f} MB"


def _read_memory(*, reset=False):
    """Return memory in use and its peak, in KiB; reset: the peak starts anew."""
    if not _STATUS.exists():  # another system than Linux: the time alone is checked
        return {"VmRSS": 0, "VmHWM": 0}
    if reset:
        _RESET.write_text("5")
    return {
        name: int(size) for name, size in re.findall(r"(Vm\w+):\s+(\d+) kB", _STATUS.read_text())
    }
