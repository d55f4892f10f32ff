"""Two processes whose run is killed or fails: a sentence, and the same run when resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import without_times
from safetensors.torch import load_file

from spem.cli import main

pytestmark = pytest.mark.hard

WORDS = ["train", "--model", "resnet8", "--gate", "spem", "--data", "digits", "--epochs", "6"]
WORDS += ["--batch-size", "200", "--device", "cpu", "--devices", "2", "--threads", "2"]


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "spem", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(pid):
    """The processes that a process has started, the oldest first."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(*WORDS, "--out", "run", cwd=folder)
    printed = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return folder / "run"


def check_equal(one, other):
    assert without_times(one) == without_times(other)
    weights, others = (load_file(run / "model.safetensors") for run in (one, other))
    assert all((value == others[name]).all() for name, value in weights.items())


@pytest.mark.parametrize("victim", ["parent", "first"])
def test_a_run_of_two_processes_that_is_killed_is_resumed_bit_for_bit(victim, whole, tmp_path):
    generator = random.Random(victim)
    process = start(*WORDS, "--out", "run", cwd=tmp_path)
    try:
        for line in process.stdout or ():
            if "epoch 1/6" in line:
                break
        time.sleep(generator.uniform(0, 1.5))
        trainers = children(process.pid)
        assert len(trainers) == 2, trainers
        os.kill(process.pid if victim == "parent" else trainers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if victim == "first":
        assert process.returncode == 2
        assert "a process of the run died (SIGKILL)" in errors.splitlines()[-1]
        assert "the state of the last epoch is kept in run" in errors.splitlines()[-1]
    resumed = start("train", "--resume", "run", cwd=tmp_path)
    printed = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, printed
    check_equal(tmp_path / "run", whole)


def test_an_error_of_a_process_is_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["--lr", "1e30", "--warmup-epochs", "0", "--out", "run", "--no-progress"]
    assert main([*WORDS, *words]) == 2
    assert "spem: error: step" in capfd.readouterr().err.splitlines()[-1]
