"""Runs in other processes: their threads, their end, Ctrl-C, kill -9, torchrun and Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import TIMES

from spem.compare import launchers, runner
from spem.compare.records import Ledger
from spem.compare.study import Study

BIN = Path(sys.executable).parent
WORDS = ["--gates", "none", "spem", "--model", "resnet8", "--data", "digits", "--no-costs"]
WORDS += ["--device", "cpu", "--threads", "1"]


def plan(seeds, **keys):
    study = Study(models="resnet8", gates=["none", "spem"], seeds=seeds)
    return study.plan(device="cpu", threads=1, progress=False, **keys)


def start(folder, *words, before=()):
    command = [
        *map(str, before),
        str(BIN / "spem"),
        "compare",
        *WORDS,
        *words,
        "--out",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process, code=0):
    try:
        printed, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == code, printed
    return printed


def wait_for(condition, seconds=100):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def results(folder):
    """What the records say but for times, by key."""

    def part(record):
        summary = {k: v for k, v in record["summary"].items() if k not in TIMES}
        history = {k: v for k, v in record["history"].items() if k not in TIMES}
        return record | {"summary": summary, "history": history}

    return {key: part(record) for key, record in Ledger(folder).records.items()}


def begun(folder):
    """The folders of runs that have finished an epoch and not all."""
    paths = (folder / "cells").glob("*/checkpoint.pt")
    return [path.parent for path in paths if not (path.parent / "summary.json").exists()]


def children(pid):
    """The processes below one, as Linux tells."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(word) for word in found.read_text().split()] if found.exists() else []
    return own + [below for child in own for below in children(child)]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    runner.run_comparison(plan(2, epochs=6), folder, launchers.run_here, costs=False)
    return results(folder)


@linux
@pytest.mark.hard  # kills of a comparison with one job: tests/train/test_kills.py
def test_kill_minus_9_and_the_same_command_give_what_an_uninterrupted_one_gives(
    tmp_path, uninterrupted
):
    words = ["--seeds", "2", "--epochs", "6", "--jobs", "2"]
    process = start(tmp_path, *words)
    wait_for(lambda: begun(tmp_path))
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    finish(process, -signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)), seconds=20)
    left = begun(tmp_path)
    assert left
    finish(start(tmp_path, *words))
    assert results(tmp_path) == uninterrupted


@linux
@pytest.mark.hard
def test_ctrl_c_saves_the_runs_and_the_same_command_goes_on(tmp_path, uninterrupted):
    words = ["--seeds", "2", "--epochs", "6", "--jobs", "2"]
    process = start(tmp_path, *words)
    wait_for(lambda: begun(tmp_path))
    process.send_signal(signal.SIGINT)
    printed = finish(process, 130)
    assert "spem: interrupted\nthe same command continues" in printed
    assert "Traceback" not in printed
    assert begun(tmp_path)
    finish(start(tmp_path, *words))
    assert results(tmp_path) == uninterrupted


def test_processes_share_the_threads(tmp_path, monkeypatch):
    asked = []

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, recipe, folder):
            asked.append(recipe.threads)
            return launchers.Future()

    def end_all(running, on_end):
        running.clear()

    monkeypatch.setattr(launchers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(launchers, "_report_ended", end_all)
    monkeypatch.setattr(launchers, "_count_cores", lambda: 8)
    recipes = [run.recipe for run in Study(models="resnet8", seeds=1).plan(threads=4)]
    runs = [(recipe, tmp_path) for recipe in recipes]
    for jobs, share in ((1, 4), (2, 4), (3, 2), (8, 1), (20, 1)):
        asked.clear()
        launchers.run_local(runs, lambda *_: None, lambda _: None, jobs)
        assert set(asked) == {share}


def test_a_process_that_dies_is_named(tmp_path, monkeypatch):
    runs = [(run.recipe, run.folder_in(tmp_path)) for run in plan(1, epochs=1)]
    monkeypatch.setattr(launchers, "_run_in_worker", die)
    with pytest.raises(ChildProcessError, match="died, perhaps for want of memory"):
        launchers.run_local(runs, lambda *_: None, lambda _: None)


def test_a_run_that_somebody_else_interrupts_is_reported_as_failed(tmp_path):
    ended, future = [], launchers.Future()
    future.set_result(launchers._INTERRUPTED)
    report = launchers._report_ended
    report({future: tmp_path}, lambda *each: ended.append(each), stopping=True)
    assert not ended
    report({future: tmp_path}, lambda *each: ended.append(each))
    assert ended == [(tmp_path, "somebody interrupted its process; its state is saved")]


def die(*_):
    os._exit(1)


@linux
@pytest.mark.hard
@pytest.mark.parametrize("machines", [1, 2])
def test_under_torchrun_two_processes_share_each_run(tmp_path, machines):
    words = ["--seeds", "1", "--epochs", "1", "--devices", "2"]
    port = str(20000 + os.getpid() % 20000)
    shared = ["--nnodes", str(machines), "--nproc-per-node", str(2 // machines)]
    shared += ["--master-addr", "127.0.0.1", "--master-port", port, "--no-python"]
    running = [
        start(tmp_path, *words, before=[BIN / "torchrun", "--node-rank", rank, *shared])
        for rank in range(machines)
    ]
    printed = [finish(process) for process in running]
    assert sum("[2/2] spem" in text for text in printed) == 1
    found = Ledger(tmp_path).records.values()
    assert [record["gate"] for record in found] == ["none", "spem"]
    assert {record["recipe"]["devices"] for record in found} == {2}
    assert all(record["summary"] for record in found)


@linux
@pytest.mark.hard
def test_ray_starts_a_run_again_whose_worker_was_killed(tmp_path, uninterrupted):
    pytest.importorskip("ray", reason="Ray comes with the extra cluster")
    process = start(tmp_path, "--seeds", "2", "--epochs", "6", "--launcher", "ray")

    def workers():
        names = Path("/proc").glob("[0-9]*/cmdline")
        return [int(n.parent.name) for n in names if n.read_bytes().startswith(b"ray::run_one")]

    wait_for(lambda: begun(tmp_path))
    killed = wait_for(workers)
    os.kill(killed[0], signal.SIGKILL)
    finish(process)
    assert not alive(killed[0])
    assert results(tmp_path) == uninterrupted
