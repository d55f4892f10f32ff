"""Clocks, memory and the tolerance rule of `spem bench`."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from spem.train.devices import record_graph

# Called untimed before each measurement; what it returns is timed.
Work = Callable[[], Callable[[], object]]
QUANTILES = (10, 25, 50, 75, 90)
_WARM_UP = 2
_FLUSH = 1 << 28  # float32 values: more than any cache, and longer than a launch takes


class RedCaseError(Exception):
    """A case whose results are wrong, or which would not run as it says: it is not timed."""


def interleave(works: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list]:
    """Run every piece of work once a round, in turning order.

    Args:
        works: by name.
        rounds: at least 2.
        device: on which they run.

    Returns:
        The seconds of each round, by name.
    """
    names = list(works)
    clock = _cuda_clock if device.type == "cuda" else _clock
    for name in names * _WARM_UP:
        works[name]()()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(works[name]))
    return seconds


def _clock(work: Work) -> float:
    run = work()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_clock(work: Work) -> float:
    """Time by events, behind a write that empties the caches and hides the first launch."""
    run = work()
    flush = torch.empty(_FLUSH, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    flush.zero_()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """Return what replays a function as one CUDA graph, which reads and writes where it did."""
    stream = _capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
        replay = record_graph(run)
    torch.cuda.current_stream().wait_stream(stream)
    return replay


@cache
def _capture_stream() -> torch.cuda.Stream:
    # One for all graphs, see `record_graph`.
    return torch.cuda.Stream()


def quantiles(values: Iterable[float]) -> dict[int, float]:
    """Return the quantiles of `QUANTILES`, in percent."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {percent: cuts[percent - 1] for percent in QUANTILES}


def ratios(seconds: Mapping[str, list[float]], case: str, baseline: str) -> dict[int, float]:
    """Return the quantiles of case / baseline, paired by round."""
    return quantiles(a / b for a, b in zip(seconds[case], seconds[baseline], strict=True))


def check_parity(
    actual: Mapping[str, Tensor],
    naive: Iterable[Mapping[str, Tensor]],
    truth: Mapping[str, Tensor],
    order: float,
    ulps: float = 4,
) -> None:
    """Check |actual − truth| <= 2·|naive − truth| + 4 ulp for each tensor that all have.

    Args:
        actual: the results under test, by name.
        naive: the same by separate PyTorch operations at the same precision, once or more often:
            the largest of their errors counts.
        truth: the same in float64.
        order: of the norm: inf for the largest element, 2 for the root of the sum of squares,
            where rounding is amplified by chance, as in whole networks.
        ulps: more than the 4 of the rule only where there is no naive result at that precision.

    Raises:
        RedCaseError: an error is larger.
    """
    runs = list(naive)
    for name, true in truth.items():
        if name not in actual or not true.numel():
            continue
        found = actual[name]
        if found.shape != true.shape:
            raise RedCaseError(f"{name} is {tuple(found.shape)}, must be {tuple(true.shape)}")
        ulp = torch.finfo(found.dtype).eps * _size(true, order)
        allowed = 2 * max(_error(run[name], true, order) for run in runs) + ulps * ulp
        error = _error(found, true, order)
        if not error <= allowed:
            raise RedCaseError(f"{name}: error {error:.2e}, allowed {allowed:.2e}")


def _error(value: Tensor, truth: Tensor, order: float) -> float:
    return _size(value.double() - truth, order)


def _size(x: Tensor, order: float) -> float:
    return torch.linalg.vector_norm(x.flatten(), order).item()


@contextmanager
def fresh_dynamo() -> Iterator[None]:
    """Start from a reset Dynamo and refuse its recompile limit.

    Past the limit Dynamo otherwise runs in eager mode, with a mere warning.

    Raises:
        RedCaseError: the limit was reached inside.
    """
    from torch import _dynamo as dynamo  # heavy, and no other command needs it
    from torch._dynamo.exc import FailOnRecompileLimitHit

    dynamo.reset()
    try:
        with dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    except FailOnRecompileLimitHit as error:
        raise RedCaseError("Dynamo reached its recompile limit") from error
    finally:
        dynamo.reset()


def step_memory(work: Work, device: torch.device) -> int | None:
    """Return the most bytes that one more run needs at a time, beside what stays after it.

    On the CPU resident memory as Linux counts it, in a process whose allocator gives memory back
    (see `bench_memory`); None where the system does not say.
    """
    work()()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        work()()
        return _resident("VmHWM") - before
    except (OSError, LookupError):
        return None


def measure_apart(module: str, *words: str) -> int | None:
    """Return what `step_memory` finds in a process of its own on the CPU.

    Args:
        module: that is run; the last line it prints is the result, in JSON.
        words: its arguments.

    Raises:
        ChildProcessError: the process failed.
    """
    # Freed maps go back to the system at once, so that resident memory is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise ChildProcessError(f"measuring the memory of a step failed: {' '.join(last)}")
    return json.loads(done.stdout.splitlines()[-1])


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or that of the processor with the number of its cores here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"
