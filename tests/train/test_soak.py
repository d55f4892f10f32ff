"""Many runs in one process, and a comparison of many: memory, files and threads stay as they are.

The full counts, 2,000 runs and 500 planned ones, are reached in one process by
`SHARE=0-100 .venv/bin/pytest -m hard -s tests/train/test_soak.py`.
"""

import gc
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from proof import cases, numbers_of
from runs import SMALL, net

from spem._messages import say
from spem.compare import launchers, runner
from spem.compare.records import Ledger
from spem.compare.study import Study
from spem.train.fitting import fit

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")

TINY = replace(SMALL, epochs=1, batch_size=2000)
MOST = 40  # MB; the allocator's pools fill up in the first hundred runs


def measure():
    """Memory in MB, open files and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = (len([*Path(f"/proc/self/{kind}").iterdir()]) for kind in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threads


def check_flat(what, before, after):
    say(f"{what}: MB, files, threads {before} before, {after} after")
    assert after[0] - before[0] < MOST
    assert after[1:] == before[1:]


def train(case, folder):
    """Train one of several kinds of runs, and remove its folder."""
    numbers = numbers_of(case)
    recipe = replace(TINY, seed=case, ema=numbers.choice([None, 0.9]))
    if numbers.random() < 0.2:
        fit(replace(recipe, model="resnet8", gate="se", replicas=2), out=folder)
    else:
        fit(replace(recipe, accumulate=numbers.choice([1, 2])), net(), out=folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("numbers", cases(2000, 2))
def test_runs_leave_nothing_in_the_process(numbers, tmp_path):
    for case in range(3):
        train(case, tmp_path / "run")
    before = measure()
    for case in numbers:
        train(case, tmp_path / "run")
    check_flat(f"{len(numbers)} runs", before, measure())


@pytest.mark.parametrize("numbers", cases(500, 1))
def test_a_comparison_leaves_nothing_in_the_process(numbers, tmp_path):
    def compare(seeds):
        study = Study(models="resnet8", gates=["none"], seeds=list(seeds))
        plan = study.plan(epochs=1, batch_size=2000, device="cpu", threads=1, progress=False)
        assert runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False) == 0

    compare(range(1000, 1001))
    before = measure()
    compare(numbers)
    check_flat(f"a comparison of {len(numbers)}", before, measure())
    assert len(Ledger(tmp_path).records) == 1 + len(numbers)
