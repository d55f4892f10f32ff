"""A process that is killed at any moment leaves a folder from which the same command goes on.

A child process trains, and ends itself, as `kill -9` would, before one of the calls that change its
folder: opening for writing, renaming, removing, making a folder, flushing. The next child goes on,
and the end must be what an uninterrupted run gives.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from proof import cases, numbers_of
from runs import SMALL, without_times
from safetensors.torch import load_file

from spem.compare import launchers, runner
from spem.compare.records import Ledger
from spem.compare.study import Study
from spem.train.fitting import fit
from spem.train.folder import is_finished
from spem.train.recipe_files import load_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

_WATCHED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}
_KILLED = 137


def watch(folder, act):
    """Call `act` before each call of this process that changes a folder; it cannot be undone."""

    def inside(path):
        return isinstance(path, str | bytes | Path) and str(folder) in os.fspath(path)

    def audit(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _WATCHED) and inside(arguments[0]):
            act()

    def fsync(descriptor):
        act()
        return flush(descriptor)

    flush, os.fsync = os.fsync, fsync
    sys.addaudithook(audit)


def in_child(work, folder, kill_at=None, seconds=None):
    """Do some work in a child process, and return its exit code and how many calls were watched.

    Args:
        work: a function of the folder.
        folder: of the run.
        kill_at: number of the watched call before which the child ends itself; None: never.
        seconds: until the child is killed from outside; None: never.
    """
    count = folder.with_name(f"{folder.name}.count")
    count.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code, calls = 1, 0
        try:

            def act():
                nonlocal calls
                if calls == kill_at:
                    os._exit(_KILLED)
                calls += 1

            log = folder.with_name(f"{folder.name}.log").open("w")
            with log, redirect_stdout(log), redirect_stderr(log):
                watch(folder, act)
                work(folder)
            count.write_text(str(calls))
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        killer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if seconds is not None:
        killer.cancel()
    return code, int(count.read_text()) if count.exists() else None


def train(recipe, folder):
    fit(recipe, out=folder, resume=(folder / "recipe.yaml").exists())


def compare(folder):
    plan = Study(models="resnet8", gates=["none", "spem"], seeds=1).plan(
        threads=1, device="cpu", progress=False, epochs=1, batch_size=500
    )
    runner.run_comparison(plan, folder, launchers.run_here, costs=False, about={"commands": []})


RUN = replace(SMALL, model="resnet8", gate="spem", epochs=2, batch_size=700)
WORKS = {
    "plain": partial(train, RUN),
    "average and accumulation": partial(train, replace(RUN, ema=0.9, accumulate=2)),
    "bf16": partial(train, replace(RUN, precision="bf16-mixed", epochs=1)),
    "replicas": partial(train, replace(RUN, replicas=2, epochs=1)),
    "skip": partial(train, replace(RUN, on_nonfinite="skip", epochs=1)),
    "compare": compare,
}


def results(folder):
    """What a folder has in the end, without times, and that nothing else is in it."""
    left = [p for p in folder.rglob(".*") if p.name != ".lock" and not p.name.endswith(".lock")]
    assert not left
    found = {}
    if (folder / "records.jsonl").exists():
        ledger = Ledger(folder)
        assert not ledger.damaged
        found = {
            key: record["summary"]["final_test_top1"] for key, record in ledger.records.items()
        }
    for path in sorted(folder.rglob("metrics.csv")):
        own = path.parent
        recipe = load_recipe(str(own / "recipe.yaml"))
        assert is_finished(own, recipe)
        weights = {k: v.tolist() for k, v in load_file(own / "model.safetensors").items()}
        found[str(own.relative_to(folder))] = (without_times(own), weights)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What uninterrupted work gives, how many calls it makes, and how many seconds it takes."""
    known = {}

    def whole(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            started = time.monotonic()
            code, calls = in_child(WORKS[name], folder)
            assert code == 0, folder.with_name("run.log").read_text()
            known[name] = results(folder), calls, time.monotonic() - started
        return known[name]

    return whole


def finish(name, folder, expected):
    code, _ = in_child(WORKS[name], folder)
    assert code == 0, folder.with_name("run.log").read_text()
    assert results(folder) == expected


FEW = {"plain": 2, "replicas": 1, "compare": 1}
PLACES = [
    pytest.param(name, *part.values, marks=part.marks, id=f"{name}-{part.id}")
    for name in WORKS
    for part in cases(300, FEW.get(name, 0))
]


@pytest.mark.parametrize(("name", "numbers"), PLACES)
def test_a_kill_at_a_call_that_changes_the_folder(tmp_path, name, numbers, whole):
    for number in numbers:
        expected, calls, _ = whole(name)
        few = len(numbers) <= max(FEW.values()) and numbers.start == 0
        at = numbers_of(number).randrange(calls) if few else number * calls // 300
        folder = tmp_path / f"run{number}"
        code, _ = in_child(WORKS[name], folder, kill_at=at)
        assert code == _KILLED
        finish(name, folder, expected)


@pytest.mark.parametrize("numbers", cases(600, 1))
def test_a_kill_at_a_random_moment(tmp_path, numbers, whole):
    for number in numbers:
        draw = numbers_of(number)
        name = draw.choice(list(WORKS))
        expected, _, seconds = whole(name)
        folder = tmp_path / f"run{number}"
        while in_child(WORKS[name], folder, seconds=draw.uniform(0, seconds))[0] != 0:
            if draw.random() < 0.5:  # some are killed more than once
                break
        finish(name, folder, expected)


PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
from runs import SMALL
from spem.train.fitting import fit

if __name__ == "__main__":
    recipe = replace(SMALL, model="resnet8", gate="spem", devices=2, epochs=4, sync_batchnorm=True)
    folder = Path(sys.argv[1])
    fit(recipe, out=folder, resume=(folder / "recipe.yaml").exists())
"""


@pytest.mark.hard
@pytest.mark.parametrize("whom", ["all", "one"])
def test_two_processes_that_are_killed_go_on_bit_for_bit(tmp_path, whom):
    (tmp_path / "job.py").write_text(PROCESSES)
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(name):
        command = [sys.executable, tmp_path / "job.py", tmp_path / name]
        return subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
        )

    def finish(process):
        _, text = process.communicate(timeout=120)
        assert process.returncode == 0, text

    finish(start("whole"))
    for number in range(3):
        name = f"{whom}{number}"
        process = start(name)
        while not (tmp_path / name / "checkpoint.pt").exists():
            time.sleep(0.02)
        time.sleep(numbers_of(number).uniform(0, 0.5))
        if whom == "all":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(text.split()[-1]), signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode != 0
        finish(start(name))
        assert results(tmp_path / name) == results(tmp_path / "whole")
