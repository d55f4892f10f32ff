"""The memory that one case of `spem bench` needs, measured in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import torch

from spem.bench_cases import Case
from spem.bench_measure import RedCaseError, step_memory
from spem.bench_runs import ready


def measure_apart(case: Case, threads: int) -> int | None:
    """Return the most bytes that one run of a case on the CPU needs, see `step_memory`.

    Raises:
        RedCaseError: the process failed.
    """
    settings = json.dumps(asdict(case))
    # Freed maps go back to the system at once, so that resident memory is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "spem.bench_memory", settings, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RedCaseError(f"measuring its memory failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(settings: str, threads: str) -> None:
    given = json.loads(settings)
    torch.set_num_threads(int(threads))
    device = torch.device("cpu")
    case = Case(**{**given, "shape": tuple(given["shape"])})
    sys.stdout.write(json.dumps(step_memory(ready(case, device).work(), device)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
