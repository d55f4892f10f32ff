"""Runs on streamed folders: as from memory, killed and resumed, in several processes."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from runs import SMALL, check_same, without_times
from torch import nn

from spem.cli import main
from spem.train import run as running
from spem.train.fitting import fit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of 40 dark and light pictures of noise."""
    folder = tmp_path_factory.mktemp("streamed") / "photographs"
    numbers = np.random.default_rng(0)
    for label, level in (("dark", 0), ("light", 60)):
        (folder / label).mkdir(parents=True)
        for number in range(40):
            pixels = level + numbers.integers(190, size=(24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.jpg")
    return str(folder)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def recipe(folder, **keys):
    keys = {"image_size": 16, "batch_size": 8, "crop": 0, "loader": "stream"} | keys
    return replace(SMALL, data=folder, model="resnet8", gate="se", **keys)


CUT = {"resized_crop": [0.3, 1.0], "flip": True, "random_erasing": 0.5}


def test_a_run_is_that_from_memory(photographs):
    keys = {"crop": 2, "flip": True}
    streamed = fit(recipe(photographs, workers=1, **keys), out="streamed")
    check_same(streamed, fit(recipe(photographs, loader="memory", **keys), out="memory"))
    assert main(["evaluate", "streamed", "--data", photographs]) == 0


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.hard) for n in (0, 1))])
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(photographs, workers, monkeypatch):
    whole = fit(recipe(photographs, **CUT), out="whole")
    killed = recipe(photographs, workers=workers, checkpoint_minutes=1e-9, **CUT)
    if (child := os.fork()) == 0:
        take, steps = running.Run.take_step, iter(range(100))

        def take_step(run):
            if next(steps) == 10:  # the fourth of the second epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return take(run)

        running.Run.take_step = take_step
        try:
            fit(killed, out="killed")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    check_same(fit(killed, out="killed", resume=True), whole)


class Linear(nn.Module):
    """A classifier whose gradients of a batch are those of its parts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 2)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.hard
def test_two_processes_see_each_image_once(photographs):
    keys = {"resized_crop": [0.3, 1.0], "flip": True, "batch_size": 10, "lr": 1e-3}
    one = fit(recipe(photographs, **keys), Linear(), out="one")
    two = fit(recipe(photographs, devices=2, threads=2, **keys), Linear(), out="two")
    for name in ("final_test_top1", "images"):
        assert one.summary[name] == two.summary[name]
    for row, other in zip(*(without_times(run.folder) for run in (one, two)), strict=True):
        numbers = [[float(value) for value in each.values() if value] for each in (row, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
