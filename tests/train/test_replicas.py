"""Replicas are the runs of their seeds: nothing but the time is shared."""

import json
import os
import signal
import statistics
from dataclasses import replace

import pytest
import torch
from runs import SMALL, check_same, net, rows, without_times

from spem import create_model
from spem.cli import main
from spem.export.network import load_network
from spem.train import setup
from spem.train.checkpoint import load_checkpoint
from spem.train.fitting import Interrupted, fit
from spem.train.folder import FILES
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.run import Run

ONE = replace(SMALL, model="resnet8", gate="spem", seed=3)
TWO = replace(ONE, replicas=2)
VARIANTS = {
    "plain": TWO,
    "averaged": replace(TWO, ema=0.9, accumulate=3, clip_gradient=0.5),
    "bf16": replace(TWO, gate="srp", gate_options={"rho": 0.5}, precision="bf16-mixed"),
}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def check_singles(folder, recipe):
    """Every replica is what a run of its seed alone writes, bit for bit."""
    for seed in range(recipe.seed, recipe.seed + recipe.replicas):
        own, single = folder / f"seed-{seed}", replace(recipe, seed=seed, replicas=1)
        alone = fit(single)
        assert without_times(own) == without_times(alone.folder)
        assert (own / "recipe.yaml").read_text() == (alone.folder / "recipe.yaml").read_text()
        assert (own / "config.json").read_text() == (alone.folder / "config.json").read_text()
        weights, others = load_network(own)[0].state_dict(), alone.model.state_dict()
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
        states = [load_checkpoint(f / "checkpoint.pt") for f in (own, alone.folder)]
        for key in ("optimizer", "model", "metrics"):
            assert str(states[0][key]) == str(states[1][key])
        check_same(alone, fit(single, out=own, resume=True))  # finished: it is returned


@pytest.mark.parametrize(
    # bfloat16 takes ten times as long where the processor emulates it.
    "variant",
    ["averaged", *(pytest.param(each, marks=pytest.mark.hard) for each in ("plain", "bf16"))],
)
def test_replicas_equal_single_runs_bit_for_bit(variant):
    recipe = VARIANTS[variant]
    run = fit(recipe, out="all")
    check_singles(run.folder, recipe)
    first = load_network(run.folder / "seed-3")[0].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in run.model.state_dict().items())


def test_the_folders_hold_what_was_promised():
    run = fit(replace(TWO, epochs=1))
    assert run.folder.name == "resnet8-spem-digits-0"
    names = {"recipe.yaml", "summary.json", "seed-3", "seed-4"}
    assert {path.name for path in run.folder.iterdir()} - {".lock"} == names
    for seed in (3, 4):
        own = run.folder / f"seed-{seed}"
        others = {"placement.json", "per_class.csv", "confusion.png", "mistakes.html"}
        assert {path.name for path in own.iterdir()} == set(FILES) - others
        recipe = load_recipe(str(own / "recipe.yaml"))
        assert (recipe.seed, recipe.replicas) == (seed, 1)
    assert load_recipe(str(run.folder / "recipe.yaml")).replicas == 2
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    values = [
        json.loads((run.folder / f"seed-{seed}" / "summary.json").read_text())["final_test_top1"]
        for seed in (3, 4)
    ]
    assert run.summary["final_test_top1"] == {
        "mean": pytest.approx(statistics.fmean(values)),
        "std": pytest.approx(statistics.stdev(values)),
        "n": 2,
        "values": values,
    }
    assert run.summary["seed"] == [3, 4]


def test_without_a_validation_split_its_values_are_null():
    run = fit(replace(TWO, epochs=1, validation=None))
    assert run.summary["test_top1_at_best_validation"] is None


def act_after(monkeypatch, steps, action):
    """Let something happen after a number of steps, over all runs."""
    counted, real = iter(range(1, 10_000)), Run.take_step

    def take_step(self):
        row = real(self)
        if next(counted) == steps:
            action(self)
        return row

    monkeypatch.setattr(Run, "take_step", take_step)


def press_ctrl_c(run):
    os.kill(os.getpid(), signal.SIGINT)


# Three steps an epoch and a run: 3 is within the first epoch, 6 at its end, 9 in the second.
@pytest.mark.parametrize(
    "steps", [3, pytest.param(6, marks=pytest.mark.hard), pytest.param(9, marks=pytest.mark.hard)]
)
def test_ctrl_c_saves_all_and_resume_goes_on_with_all(monkeypatch, steps):
    with monkeypatch.context() as patch:
        act_after(patch, steps, press_ctrl_c)
        with pytest.raises(Interrupted) as stop:
            fit(TWO, out="all")
    assert stop.value.folder.name == "all"
    for seed in (3, 4):
        state = load_checkpoint(stop.value.folder / f"seed-{seed}" / "checkpoint.pt")
        assert 3 * state["epoch"] + state["step"] == (steps + 1) // 2
    assert not (stop.value.folder / "summary.json").exists()
    check_singles(fit(TWO, out="all", resume=True).folder, TWO)


@pytest.mark.hard
def test_replicas_that_died_are_resumed(monkeypatch):
    def die(run):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        act_after(patch, 8, die)
        with pytest.raises(OSError, match="power cut"):
            fit(TWO, out="all")
    check_singles(fit(TWO, out="all", resume=True).folder, TWO)


def test_a_replica_can_be_finished_alone_and_is_then_left_as_it_is(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        act_after(patch, 8, press_ctrl_c)
        with pytest.raises(Interrupted):
            fit(TWO, out="all")
    own = tmp_path / "all" / "seed-4"
    fit(replace(ONE, seed=4), out=own, resume=True)
    files = {path: path.stat().st_mtime_ns for path in own.iterdir()}
    check_singles(fit(TWO, out="all", resume=True).folder, TWO)
    assert files == {path: path.stat().st_mtime_ns for path in own.iterdir()}


def test_a_run_that_diverges_does_not_stop_the_others(monkeypatch, tmp_path):
    def spoil(self, real=Run._start_epoch):
        factor = float("nan") if self.recipe.seed == 3 else 1.0
        return ((images * factor, labels) for images, labels in real(self))

    monkeypatch.setattr(Run, "_start_epoch", spoil)
    with pytest.raises(ValueError, match=r"^seed 3: step 1 of epoch 1 is not finite"):
        fit(TWO, out="all")
    assert (tmp_path / "all" / "seed-4" / "summary.json").exists()
    assert not (tmp_path / "all" / "seed-3" / "summary.json").exists()
    assert not (tmp_path / "all" / "summary.json").exists()


def test_a_finished_folder_is_returned_as_it_is(capsys):
    recipe = replace(TWO, epochs=1)
    run = fit(recipe, out="all")
    assert fit(recipe, out="all", resume=True).summary == run.summary
    assert "finished" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="all exists"):
        fit(recipe, out="all")
    with pytest.raises(ValueError, match="another recipe: replicas"):
        fit(replace(recipe, replicas=3), out="all", resume=True)


def test_overwriting_removes_the_seeds_that_were(tmp_path):
    fit(replace(TWO, epochs=1), out="all")
    (tmp_path / "all" / "seed-4" / "notes.txt").write_text("mine")
    fit(replace(TWO, epochs=1, seed=7), out="all", overwrite=True)
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names - {".lock"} == {"recipe.yaml", "summary.json", "seed-7", "seed-8", "seed-4"}
    assert [path.name for path in (tmp_path / "all" / "seed-4").iterdir()] == ["notes.txt"]
    fit(replace(ONE, epochs=1), out="all", overwrite=True)
    assert not (tmp_path / "all" / "seed-7").exists()
    assert len(rows(tmp_path / "all")) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"replicas": 0}, "replicas must be a whole number from 1 to 1,024, got 0"),
        ({"replicas": 2, "devices": 2}, "devices must be 1 with replicas, got 2"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**changes)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="replicas is 2, must be 1 for a given model"):
        fit(TWO, net())
    with pytest.raises(ValueError, match="must be 1 for a given model"):
        fit(TWO, create_model("resnet8", in_channels=1))
    with pytest.raises(ValueError, match="unknown gate"):
        fit(replace(TWO, gate="spme"))
    real = setup.load_dataset

    def load_dataset(data, *, seed, **options):
        if seed == 4:
            raise ValueError("seed 4 has no data")
        return real(data, seed=seed, **options)

    monkeypatch.setattr(setup, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="seed 4 has no data"):
        fit(TWO)
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_mean_and_deviation_and_reads_each_replica(capsys):
    words = ["--model", "resnet8", "--epochs", "1", "--batch-size", "500", "--device", "cpu"]
    words += ["--replicas", "2", "--threads", "1", "--no-progress", "--out", "all"]
    assert main(["train", *words]) == 0
    printed = capsys.readouterr().out
    assert " (n = 2)" in printed
    assert "[0, 1]" in printed
    assert main(["evaluate", "all/seed-1", "--device", "cpu"]) == 0
    assert main(["evaluate", "all", "--device", "cpu"]) == 2
    assert "those of its seeds lie in all/seed-0, all/seed-1" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_replicas_on_a_device_equal_single_runs(cuda_graph, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recipe = replace(TWO, device="cuda", batch_size=250, cuda_graph=cuda_graph)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        check_singles(fit(recipe, out="all").folder, recipe)
    finally:
        torch.use_deterministic_algorithms(before)
