"""A disk that is full, read-only or gone: a sentence with the path; the last state is kept."""

import errno
import os
import shutil
from dataclasses import replace

import pytest
from runs import SMALL, check_same, net

from spem import _files
from spem.cli import main
from spem.compare.records import Ledger
from spem.train.fitting import fit

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a failed write names no file


def raise_(error):
    def fail(*_, **__):
        raise error

    return fail


def acting_at(call, action):
    """A network that does something before a forward pass; an epoch has 5, call 7 is in epoch 2."""
    model, calls = net(), iter(range(1000))
    model.before = lambda: action() if next(calls) == call else None
    return model


def test_a_full_disk_names_the_file_and_keeps_the_last_state(monkeypatch, tmp_path):
    model = acting_at(7, lambda: monkeypatch.setattr(os, "fsync", raise_(FULL)))
    with pytest.raises(OSError, match=r"No space left on device: .*run/checkpoint\.pt"):
        fit(SMALL, model, out=tmp_path / "run")
    monkeypatch.undo()
    check_same(fit(SMALL, net(), out=tmp_path / "run", resume=True), fit(SMALL, net()))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_the_command_names_what_it_cannot_write(number, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(_files.Path, "touch", raise_(error))
    words = ["--model", "resnet8", "--epochs", "1", "--threads", "1", "--device", "cpu"]
    assert main(["train", *words, "--out", "run"]) == 2
    _, said = capsys.readouterr()
    assert said == f"spem: error: {os.strerror(number).lower()}: {tmp_path}/run/recipe.yaml\n"


def test_a_record_that_cannot_be_written_names_the_file(monkeypatch, tmp_path):
    ledger = Ledger(tmp_path)
    monkeypatch.setattr(os, "fsync", raise_(FULL))
    with pytest.raises(OSError, match=r"No space left on device: .*records\.jsonl"):
        ledger.append({"key": "a"})


def test_a_folder_that_is_deleted_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        fit(SMALL, acting_at(7, lambda: shutil.rmtree(tmp_path / "run")), out=tmp_path / "run")
    assert found.value.filename == str(tmp_path / "run")


def test_replicas_whose_last_state_is_not_saved_are_not_finished(monkeypatch, tmp_path):
    recipe = replace(SMALL, model="resnet8", epochs=1, replicas=2)
    monkeypatch.setattr("spem.train.run.save_checkpoint", raise_(FULL))
    with pytest.raises(OSError, match="No space left"):
        fit(recipe, out=tmp_path / "run")
    assert not list(tmp_path.rglob("summary.json"))
    monkeypatch.undo()
    fit(recipe, out=tmp_path / "run", resume=True)
    assert len(list(tmp_path.rglob("summary.json"))) == 3
