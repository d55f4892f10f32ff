"""The memory that one case of `spem bench` needs, measured in a process of its own."""

import json
import sys
from dataclasses import asdict

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
        return measure_apart("benchmarks.bench.memory", json.dumps(asdict(case)), str(threads))
    except ChildProcessError as error:
        raise RedCaseError(str(error)) from error


def _main(settings: str, threads: str) -> None:
    given = json.loads(settings)
    torch.set_num_threads(int(threads))
    device = torch.device("cpu")
    case = Case(**{**given, "shape": tuple(given["shape"])})
    sys.stdout.write(json.dumps(step_memory(ready(case, device).work(), device)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
