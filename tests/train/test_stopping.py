"""Runs that end early: when, with what, resumed, in replicas, and where there is no validation."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import SMALL, check_same, net, rows

from spem.cli import main
from spem.train.fitting import Interrupted, fit
from spem.train.identity import record_key
from spem.train.recipe import Recipe
from spem.train.stopping import has_stopped

# So low a rate that no accuracy changes: the first epoch stays the best.
STILL = replace(SMALL, epochs=6, patience=2, lr=1e-9, schedule="constant", crop=0)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("accuracies", "patience", "stopped"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.4], 3, False),
        ([0.5, 0.4, 0.4, 0.5], 3, True),
        ([0.5, 0.4, 0.4, 0.51], 3, False),
        ([0.1, 0.5, 0.4, 0.4], 2, True),
        ([0.5] * 100, None, False),
    ],
)
def test_patience_counts_epochs_since_the_first_best_one(accuracies, patience, stopped):
    history = [{"validation_top1": value} for value in accuracies]
    assert has_stopped(Recipe(patience=patience), history) is stopped


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 3), (1, 3), (2.5, 5), (3, 5), (9, 11)])
def test_epochs_of_the_warmup_do_not_count(warmup, epochs):
    recipe, history = Recipe(patience=2, epochs=20, warmup_epochs=warmup), []
    while not has_stopped(recipe, history):
        history.append({"validation_top1": 0.5})
    assert len(history) == epochs


def test_a_run_ends_with_the_weights_of_its_last_epoch_and_says_so(capsys):
    run = fit(replace(STILL, progress=True), net(), out="run")
    said = capsys.readouterr().out
    assert "epoch 3/6" in said
    assert "the end: no better validation top-1 for 2 epochs" in said
    assert "epoch 4/6" not in said
    assert len(rows(run.folder)) == 3
    assert run.summary["stopped_early"] is True
    assert run.summary["best_validation_epoch"] == 0
    short = fit(replace(STILL, epochs=3, patience=None), net(), out="short")
    check_same(run, short)
    assert "stopped_early" not in short.summary
    assert fit(replace(STILL, patience=6), net(), out="all").summary["stopped_early"] is False


def test_a_run_that_ended_early_is_finished():
    run = fit(STILL, net(), out="run")
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    again = fit(STILL, net(), out="run", resume=True)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    assert again.summary == run.summary
    (run.folder / "summary.json").unlink()  # as if killed before it was written
    (run.folder / "curves.png").unlink()
    check_same(run, fit(STILL, net(), out="run", resume=True))
    assert json.loads((run.folder / "summary.json").read_text())["stopped_early"] is True
    longer = fit(replace(STILL, epochs=9), net(), out="run", resume=True)
    assert len(rows(longer.folder)) == 3


@pytest.mark.parametrize("call", [4, 8])
def test_patience_goes_on_where_a_run_was_interrupted(call, tmp_path):
    whole = fit(STILL, net())
    stopped, calls = net(), iter(range(1000))
    stopped.before = lambda: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == call else None
    with pytest.raises(Interrupted):
        fit(STILL, stopped, out=tmp_path / "run")
    check_same(whole, fit(STILL, net(), out=tmp_path / "run", resume=True))


def test_each_replica_has_its_own_patience():
    recipe = replace(STILL, model="resnet8", lr=0.3, patience=1, epochs=5, replicas=2)
    common = fit(recipe, out="common")
    ends = [len(rows(common.folder / f"seed-{seed}")) for seed in range(2)]
    for seed, end in enumerate(ends):
        own = rows(common.folder / f"seed-{seed}")
        history = [{"validation_top1": float(row["validation_top1"])} for row in own]
        assert not has_stopped(recipe, history[:-1])
        assert end == 5 or has_stopped(recipe, history)


def test_without_validation_images_it_is_refused_before_a_folder_is_made():
    message = "patience is 2, but digits has no validation images: set validation to the fraction"
    with pytest.raises(ValueError, match=message):
        fit(replace(STILL, validation=None), net(), out="run")
    assert not Path("run").exists()


def test_a_run_without_patience_keeps_its_key():
    assert record_key(replace(STILL, patience=None)) != record_key(STILL)
    assert record_key(Recipe()) == record_key(Recipe(patience=None))


@pytest.mark.hard
def test_a_comparison_and_its_report_take_runs_of_several_lengths(tmp_path):
    folder = str(tmp_path / "cmp")
    keys = {"--epochs": "6", "--patience": "1", "--schedule": "constant", "--lr": "0.3"}
    keys |= {"--data": "digits", "--model": "resnet8", "--seeds": "3", "--batch-size": "512"}
    options = [text for pair in keys.items() for text in pair]
    assert (
        main(["compare", "--gates", "none", "spem", *options, "--no-costs", "--out", folder]) == 0
    )
    lengths = {len(rows(path.parent)) for path in Path(folder).glob("cells/*/metrics.csv")}
    assert lengths & {2, 3, 4, 5}
    assert main(["report", folder]) == 0
    assert "A run that stopped early keeps its last value" in Path(folder, "report.md").read_text()


def test_the_moving_average_is_what_is_waited_for():
    run = fit(replace(STILL, ema=0.9, lr=0.05, patience=1, epochs=4), net())
    history = [{"validation_top1": float(row["validation_top1"])} for row in rows(run.folder)]
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert run.summary["stopped_early"] == (len(history) < 4)
