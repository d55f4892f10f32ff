"""A run's folder tells the truth: its states, its lock, and the identity of its files."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import SMALL, check_same, net, rows
from safetensors.torch import load_file, save_file

from spem._files import atomically
from spem.compare.launchers import run_one
from spem.export import load_network
from spem.train import checkpoint
from spem.train import folder as folders
from spem.train.fitting import Interrupted, fit
from spem.train.identity import FREE_KEYS, NEW_KEYS, identity, record_key
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe

SHORT = replace(SMALL, model="resnet8", gate="spem", epochs=2)
# The keys of a recipe when runs began to carry an identity: what comes later must be in one of the
# tables of `spem.train.identity`, or every old run would get another key.
FIRST_KEYS = {
    *("model", "block", "gate", "gate_options", "placement", "mask", "weights", "data"),
    *("image_size", "validation", "mean", "std", "crop", "flip", "epochs", "batch_size", "lr"),
    *("momentum", "nesterov", "weight_decay", "schedule", "milestones", "gamma", "warmup_epochs"),
    *("label_smoothing", "clip_gradient", "ema", "accumulate", "precision", "channels_last"),
    *("compile", "cuda_graph", "sync_batchnorm", "devices", "seed", "replicas"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests work on copies."""
    return fit(SHORT, out=tmp_path_factory.mktemp("finished") / "run").folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def resume(folder, **changes):
    recipe = load_recipe(str(folder / "recipe.yaml"))
    return fit(replace(recipe, progress=False, **changes), out=folder, resume=True)


def test_keys_of_later_versions_change_no_key_of_a_run():
    known = FIRST_KEYS | {*FREE_KEYS} | NEW_KEYS.keys()
    assert set(Recipe.__dataclass_fields__) <= known
    assert all(getattr(Recipe(), key) == value for key, value in NEW_KEYS.items())
    longer = replace(SHORT, epochs=9)
    assert identity(longer) == identity(SHORT)
    assert record_key(longer) != record_key(SHORT)
    assert identity(replace(SHORT, seed=1)) != identity(SHORT)


@pytest.mark.parametrize("name", [*folders.DERIVED, "summary.json"])
@pytest.mark.parametrize("how", ["missing", "cut off", "altered"])
def test_derived_files_are_made_again_without_training(run, name, how, finished):
    path = run / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut off":
        path.write_bytes(content[:-20])
    elif how == "altered":
        path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    before = (run / "checkpoint.pt").stat().st_mtime_ns
    resume(run)
    assert (run / "checkpoint.pt").stat().st_mtime_ns == before  # nothing was trained
    assert rows(run) == rows(finished)
    assert folders.is_finished(run, SHORT)
    weights, others = (load_file(f / "model.safetensors") for f in (run, finished))
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_without_a_checkpoint_a_damaged_file_is_named(run):
    (run / "checkpoint.pt").unlink()
    resume(run)  # it is finished, and whole
    (run / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv is missing or altered, and there is no ch"):
        resume(run)


def test_a_comparison_takes_up_a_run_that_lost_its_last_row(run):
    (run / "summary.json").unlink()
    (run / "metrics.csv").unlink()
    assert run_one(load_recipe(str(run / "recipe.yaml")), run) is None
    assert len(rows(run)) == 2


def test_what_interrupted_writes_left_is_removed_and_stops_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".recipe.yaml.123", ".checkpoint.pt.9", ".lock"):
        (folder / name).write_text("half")
    (folder / ".notes.txt.7").write_text("mine")
    with pytest.raises(FileExistsError):
        fit(SHORT, out=folder)
    (folder / ".notes.txt.7").unlink()
    fit(replace(SHORT, epochs=1), out=folder)
    assert not list(folder.glob(".*.*"))


def test_two_runs_do_not_share_a_folder(run):
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != ".lock"}
    with folders.locked(run):
        for options in ({"overwrite": True}, {"resume": True}):
            recipe = replace(SHORT, epochs=3, schedule="constant")
            recipe = SHORT if "resume" in options else recipe
            if "resume" in options:
                (run / "summary.json").unlink()
            with pytest.raises(ValueError, match="another run trains in"):
                fit(recipe, out=run, **options)
    for path, content in before.items():
        assert path.name == "summary.json" or path.read_bytes() == content


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folders.FileLock, "acquire", refuse)
    fit(replace(SMALL, epochs=1), net(), out=tmp_path / "run")
    assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("changes", [{"seed": 7}, {"lr": 0.05}, {"gate": "se"}])
def test_a_checkpoint_of_another_run_is_refused(changes, run, tmp_path):
    other = fit(replace(SHORT, epochs=1, **changes), out=tmp_path / "other").folder
    (run / "summary.json").unlink()
    shutil.copy(other / "checkpoint.pt", run)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is the checkpoint of a run with another"):
        resume(run)


def test_a_checkpoint_of_another_length_is_refused_where_the_schedule_depends_on_it(run, tmp_path):
    other = fit(replace(SHORT, epochs=1), out=tmp_path / "other").folder
    (run / "summary.json").unlink()
    shutil.copy(other / "checkpoint.pt", run)
    with pytest.raises(ValueError, match="is the checkpoint of a run of 1 epochs"):
        resume(run)


def test_weights_of_another_run_are_refused(run, tmp_path):
    other = fit(replace(SHORT, epochs=1, seed=7), out=tmp_path / "other").folder
    shutil.copy(other / "model.safetensors", run)
    with pytest.raises(ValueError, match="has the weights of another run than"):
        load_network(run)


def test_altered_weights_are_refused(run):
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="its content fails its checksum"):
        load_network(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.half(), r"is torch\.float16, must be torch\.float32"),
        (lambda value: value * float("nan"), "has values that are not finite"),
        (lambda value: value / 0, "has values that are not finite"),
    ],
)
def test_weights_of_other_dtypes_or_not_finite_are_refused(change, message, run):
    stored = load_file(run / "model.safetensors")
    save_file(stored | {"fc.weight": change(stored["fc.weight"])}, run / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_network(run)


def test_folders_of_earlier_versions_load_with_one_warning_and_go_on(run, caplog):
    stored = load_file(run / "model.safetensors")
    save_file(stored, run / "model.safetensors")
    load_network(run)
    assert caplog.text.count("of an earlier version") == 1
    caplog.clear()
    state = checkpoint.load_checkpoint(run / "checkpoint.pt")
    del state["run"]
    checkpoint.save_checkpoint(run / "checkpoint.pt", state)
    (run / "summary.json").unlink()
    resume(run)
    assert caplog.text.count("names no run") == 1


def test_a_checkpoint_whose_content_is_wrong_is_refused(run):
    state = checkpoint.load_checkpoint(run / "checkpoint.pt")
    (run / "summary.json").unlink()
    for key, value in {"model": {}, "optimizer": {"state": 3}, "schedule": None}.items():
        checkpoint.save_checkpoint(run / "checkpoint.pt", state | {key: value})
        with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit its recipe"):
            resume(run)


def test_the_last_checkpoint_is_kept_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, {"epoch": 1})
    monkeypatch.setattr(checkpoint, "_find_damaged", lambda _: "data")
    with pytest.raises(OSError, match="was not written as it should be"):
        checkpoint.save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_files_and_their_folder_are_flushed(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomically(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert flushed == [str(temporary), str(tmp_path)]


def test_sigterm_saves_the_state_as_ctrl_c_does(tmp_path):
    ended, calls = net(), iter(range(100))
    ended.before = lambda: next(calls) == 3 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        fit(SMALL, ended, out=tmp_path / "run")
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    check_same(fit(SMALL, net(), out=tmp_path / "run", resume=True), fit(SMALL, net()))


def test_the_command_ends_with_143_and_says_how_to_go_on(tmp_path):
    words = ["train", "--model", "resnet8", "--epochs", "50", "--threads", "1", "--out", "run"]
    command = [sys.executable, "-m", "spem", *words, "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout or ():
        if "epoch  1/50" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "continue with: spem train --resume run" in errors
    assert Path(tmp_path, "run", "checkpoint.pt").is_file()


def test_a_long_epoch_is_saved_within(tmp_path, monkeypatch):
    saved = []
    real = checkpoint.save_checkpoint

    def save(path, state):
        saved.append((state["epoch"], state["step"]))
        real(path, state)

    monkeypatch.setattr("spem.train.run.save_checkpoint", save)
    fit(replace(SMALL, epochs=1, checkpoint_minutes=1e-9), net(), out=tmp_path / "often")
    assert saved == [(0, 1), (0, 2), (1, 0)]
    saved.clear()
    fit(replace(SMALL, epochs=1, checkpoint_minutes=60), net(), out=tmp_path / "seldom")
    assert saved == [(1, 0)]
