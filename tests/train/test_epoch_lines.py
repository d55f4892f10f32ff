"""What a training prints: a line for each finished epoch, and in a terminal a bar below them."""

import io
import re
from dataclasses import replace

import pytest
import rich
from rich.console import Console
from runs import SMALL, net, rows

from spem.train.fitting import fit
from spem.train.progress import describe_epoch, format_duration

LINE = re.compile(
    r"epoch (\d)/2: train loss [\d.]+ top-1 [\d.]+%, validation loss [\d.]+ top-1 [\d.]+%,"
    r" test loss [\d.]+ top-1 [\d.]+%, lr [\d.e-]+, [\d,]+ images/s, \d+ s left"
)
SHOWN = replace(SMALL, progress=True)


@pytest.fixture
def printed(monkeypatch, tmp_path):
    """What is printed, to a file or to a terminal."""
    monkeypatch.chdir(tmp_path)

    def printed(terminal, recipe, model=None):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=200, color_system=None)
        monkeypatch.setattr(rich, "_console", console)
        return fit(recipe, model and model(file)), file.getvalue()

    return printed


def test_without_a_terminal_there_is_a_line_for_each_epoch(printed):
    run, text = printed(False, SHOWN, lambda file: net())
    assert LINE.findall(text) == ["1", "2"]
    assert len(text.splitlines()) == 4  # two more, of the data and of the network
    last = rows(run.folder)[-1]
    assert f"train loss {float(last['train_loss']):.4f} top-1" in text
    assert f"test loss {float(last['test_loss']):.4f} top-1 {float(last['test_top1']):.2%}" in text
    assert text.endswith(", 0 s left\n")


def test_a_line_is_there_before_the_next_epoch_begins(printed):
    seen = []

    def model(file):
        made = net()
        made.before = lambda: seen.append(len(LINE.findall(file.getvalue())))
        return made

    printed(False, SHOWN, model)
    # A pass that counts the multiply-adds; three steps, validation and test in each epoch.
    assert seen[:11] == [0] * 6 + [1] * 5


def test_in_a_terminal_finished_epochs_stay_above_the_bar(printed):
    _, text = printed(True, SHOWN, lambda file: net())
    assert LINE.findall(text) == ["1", "2"]
    assert "━" in text
    assert re.search(r"epoch 1/2 .*\d/6", text)


@pytest.mark.parametrize("terminal", [True, False])
def test_without_progress_nothing_is_printed(printed, terminal):
    assert printed(terminal, SMALL, lambda file: net())[1] == ""


def test_replicas_name_their_seeds(printed):
    recipe = replace(SHOWN, model="resnet8", replicas=2, validation=None)
    lines = printed(False, recipe)[1].splitlines()[2:]
    assert [line.partition(": ")[0] for line in lines] == [
        f"seed {seed}, epoch {epoch}/2" for epoch in (1, 2) for seed in (0, 1)
    ]
    assert all("validation" not in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (29, "29 s"), (90, "2 min"), (3599, "1 h 00 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_loss_that_says_nothing_any_more_is_marked():
    row = {f"{split}_{key}": 0.5 for split in ("train", "test") for key in ("loss", "top1")}
    row |= {"epoch": 0, "validation_loss": None, "learning_rate": 0.1, "images_per_second": 9.0}
    assert "diverged" not in describe_epoch(row, 1)
    assert describe_epoch(row | {"test_loss": 1e8}, 1).endswith(", a loss above 50: diverged")
