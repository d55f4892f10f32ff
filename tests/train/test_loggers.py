"""TensorBoard and Weights & Biases get every epoch once, beside `metrics.csv`."""

import os
import signal
import sys
from dataclasses import replace

import pytest
from runs import SMALL, net, rows

from spem.train import loggers
from spem.train.fitting import Interrupted, fit
from spem.train.recipe import Recipe

BOARD = replace(SMALL, logger="tensorboard")


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def read_board(folder):
    """Steps and values of the test accuracy in the log of a run."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = reader.EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    return [(event.step, pytest.approx(event.value)) for event in log.Scalars("test_top1")]


def recorded(folder):
    return [(int(row["epoch"]) + 1, float(row["test_top1"])) for row in rows(folder)]


def stop_at(call):
    """A network whose forward pass of this number presses Ctrl-C."""
    calls, model = iter(range(100)), net()
    model.before = lambda: os.kill(os.getpid(), signal.SIGINT) if next(calls) == call else None
    return model


def test_csv_is_all_there_is_unless_a_logger_is_named():
    assert not {"tensorboard", "wandb"} & {path.name for path in fit(SMALL, net()).folder.iterdir()}


def test_a_resumed_run_continues_its_log():
    with pytest.raises(Interrupted):
        fit(BOARD, stop_at(7), out="run")
    run = fit(BOARD, net(), out="run", resume=True)
    assert recorded(run.folder) == read_board(run.folder)
    assert len(rows(run.folder)) == 2


def test_an_epoch_that_is_trained_again_is_logged_once(monkeypatch):
    """A run that dies between the log and the checkpoint repeats the epoch."""
    with monkeypatch.context() as patch:
        patch.setattr("spem.train.run.save_checkpoint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(BOARD, net(), out="run")
    run = fit(BOARD, net(), out="run", resume=True)
    assert recorded(run.folder) == read_board(run.folder)


def test_a_log_that_begins_later_has_the_earlier_epochs():
    with pytest.raises(Interrupted):
        fit(SMALL, stop_at(7), out="run")
    run = fit(BOARD, net(), out="run", resume=True)
    assert recorded(run.folder) == read_board(run.folder)


def test_replicas_have_a_log_each():
    run = fit(replace(BOARD, model="resnet8", replicas=2, epochs=1))
    for seed in (0, 1):
        own = run.folder / f"seed-{seed}"
        assert recorded(own) == read_board(own)


def test_a_new_run_in_the_folder_has_a_new_log():
    fit(BOARD, net(), out="run")
    run = fit(replace(SMALL, epochs=1), net(), out="run", overwrite=True)
    assert not (run.folder / "tensorboard").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(
    monkeypatch, tmp_path, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"extra 'log'"):
        fit(replace(SMALL, logger=name), net())
    assert not list(tmp_path.iterdir())


def test_an_unknown_logger_is_refused():
    with pytest.raises(ValueError, match="unknown logger 'tensorbord'; known: tensorboard, "):
        Recipe(logger="tensorbord")  # pyright: ignore[reportArgumentType]


def test_wandb_without_a_key_writes_one_run_offline(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recipe = replace(SMALL, logger="wandb")
    with pytest.raises(Interrupted):
        fit(recipe, stop_at(7), out="run")
    run = fit(recipe, net(), out="run", resume=True)
    logs = sorted((run.folder / "wandb").glob("offline-run-*"))
    assert len(logs) == 2
    assert len({path.name.rpartition("-")[2] for path in logs}) == 1
    assert len(rows(run.folder)) == 2


@pytest.mark.parametrize(
    ("key", "answer", "mode"),
    [
        (False, None, "offline"),
        (True, OSError("no network"), "offline"),
        (True, loggers.HTTPError("", 404, "", None, None), "online"),  # pyright: ignore
        (True, open, "online"),
    ],
)
def test_wandb_is_online_with_a_key_and_a_network(monkeypatch, tmp_path, key, answer, mode):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: key)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def urlopen(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer(tmp_path / "answer", "w")

    monkeypatch.setattr(loggers, "urlopen", urlopen)
    assert loggers._choose_mode() == mode
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers._choose_mode() is None
