"""How times and memory are measured in turns, and the rule for what may be timed at all."""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from spem import kernels

# Called before each measurement, untimed; the function that it returns is timed.
Work = Callable[[], Callable[[], object]]
QUANTILES = (10, 25, 50, 75, 90)
_WARM_UP = 2
_FLUSH = 1 << 28  # float32 values: more than any cache, and longer than a launch takes


class RedCaseError(Exception):
    """The results are wrong, or the work would not run as it says: it is not timed."""


def interleave(works: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list]:
    """Time every piece of work once a round, each round beginning with another one.

    Whatever else the machine does meets all of them alike.

    Args:
        works: by name.
        rounds: at least 2.
        device: on which they run.

    Returns:
        The seconds of each round, by name.
    """
    names = list(works)
    clock = _time_on_cuda if device.type == "cuda" else _time_on_cpu
    for name in names * _WARM_UP:
        works[name]()()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(clock(works[name]))
    return seconds


def _time_on_cpu(work: Work) -> float:
    run = work()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _time_on_cuda(work: Work) -> float:
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
    runs, size = list(naive), partial(torch.linalg.vector_norm, ord=order)
    for name, true in truth.items():
        if name not in actual or not true.numel():
            continue
        found = actual[name]
        if found.shape != true.shape:
            raise RedCaseError(f"{name} is {tuple(found.shape)}, must be {tuple(true.shape)}")
        error = size(found.double() - true).item()
        errors = [size(run[name].double() - true).item() for run in runs]
        allowed = 2 * max(errors) + ulps * torch.finfo(found.dtype).eps * size(true).item()
        if not error <= allowed:
            raise RedCaseError(f"{name}: error {error:.2e}, allowed {allowed:.2e}")


def fastest_kernels(device: torch.device) -> str:
    """Return the name of the backend that serves this device best, of those that work here."""
    wanted = ("triton", "compiled") if device.type == "cuda" else ("compiled",)
    return next((name for name in wanted if kernels.why_not(name) is None), "eager")


def step_memory(work: Work, device: torch.device) -> int | None:
    """Return the peak of the bytes that one run allocates, above those allocated before it.

    On the CPU it is the resident memory as Linux counts it, which needs a process whose allocator
    returns freed memory at once: call this through `measure_apart`.

    Returns:
        Bytes, or None where the system does not say.
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


def measure_apart(measure: Callable[..., int | None], *arguments: object) -> int | None:
    """Call a function that returns `step_memory` on the CPU, in a process of its own.

    Args:
        measure: a function of a module.
        arguments: what it is called with; they are pickled.

    Raises:
        ChildProcessError: the function raised, or its process died.
    """
    before = dict(os.environ)
    # Freed memory goes back to the system at once, so that resident memory is memory in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, *arguments).result()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ChildProcessError(f"measuring the memory of a step failed: {reason}") from error
    finally:
        os.environ.clear()
        os.environ.update(before)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or that of the processor with the number of its cores here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.machine()
    with suppress(OSError, StopIteration):
        found = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in found if line.startswith("model name")).partition(": ")[2]
    return f"{name}, {os.cpu_count()} cores"
