"""A device that is out of memory or lost ends a run with one sentence; its last state is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import SMALL, check_same, net

from spem.cli import main
from spem.compare.launchers import run_one
from spem.train import metrics, step
from spem.train.fitting import fit

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
LOST = RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: x")
OTHER = RuntimeError("mat1 and mat2 shapes cannot be multiplied")

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "max-and-min.png"


@pytest.fixture
def failing(monkeypatch):
    """Let the fifth training step raise an error, once."""

    def fail(error, after=4):
        plain, steps = step.Step.__call__, iter(range(10**6))

        def call(self, *args):
            if next(steps) == after:
                raise error
            return plain(self, *args)

        monkeypatch.setattr(step.Step, "__call__", call)

    return fail


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (
            MEMORY,
            {},
            r"^out of memory, at a peak of \d+\.\d GiB: accumulate 2 takes batches of",
        ),
        (CPU, {"accumulate": 4}, "GiB: accumulate 8 takes batches of 500 images in about half"),
        (MEMORY, {"accumulate": 260}, "GiB: a smaller network, or smaller images, take less; the"),
        (LOST, {}, "^the device was lost: CUDA error: unspecified launch failure CUDA kernel"),
    ],
)
def test_the_sentence_says_what_helps_and_the_run_goes_on(
    tmp_path, failing, error, changes, message
):
    recipe = replace(SMALL, **changes, epochs=2)
    failing(error)
    with pytest.raises(ValueError, match=message) as caught:
        fit(recipe, net(), out=tmp_path / "run")
    assert "; the state of the last epoch is kept in" in str(caught.value)
    again = fit(recipe, net(), out=tmp_path / "run", resume=True)
    check_same(again, fit(recipe, net(), out=tmp_path / "whole"))


def test_no_state_is_promised_in_the_first_epoch_and_other_errors_stay(tmp_path, failing):
    failing(MEMORY, after=0)
    with pytest.raises(ValueError, match=r"about half the memory$"):
        fit(SMALL, net(), out=tmp_path / "run")
    failing(OTHER)
    with pytest.raises(RuntimeError, match="mat1"):
        fit(SMALL, net(), out=tmp_path / "other")


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_command_ends_with_the_sentence(tmp_path, failing, monkeypatch, capsys, replicas):
    monkeypatch.chdir(tmp_path)
    failing(MEMORY)
    words = f"train --model resnet8 --batch-size 500 --epochs 2 --replicas {replicas} --no-progress"
    assert main(words.split()) in (1, 2)
    assert "spem: error: out of memory, at a peak of" in capsys.readouterr().err


def test_a_comparison_records_it(tmp_path, failing):
    failing(LOST, after=0)
    recipe = replace(SMALL, model="resnet8")
    assert run_one(recipe, tmp_path / "cells" / "a").startswith("the device was lost: CUDA error")


def test_an_evaluation_says_it(monkeypatch, capsys):
    def fail(*_args):
        raise MEMORY

    monkeypatch.setattr(metrics.nn.Module, "__call__", fail)
    assert main(["predict", "resnet20-spem-cifar10", str(PICTURE)]) in (1, 2)
    assert "out of memory, at a peak of" in capsys.readouterr().err
