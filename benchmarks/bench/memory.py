"""The memory that one case needs, measured in a process of its own."""

import torch

from benchmarks.bench.cases import Case
from benchmarks.bench.runs import ready
from spem.compare.timing import RedCaseError, measure_apart, step_memory


def case_memory(case: Case, threads: int) -> int | None:
    """Return the most bytes that one run of a case on the CPU needs, see `step_memory`.

    Raises:
        RedCaseError: the process failed.
    """
    try:
        return measure_apart(_measure, case, threads)
    except ChildProcessError as error:
        raise RedCaseError(str(error)) from error


def _measure(case: Case, threads: int) -> int | None:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    return step_memory(ready(case, device).work(), device)
