import resource
import zipfile

import pytest
import torch
from torch import nn

from spem.export.network import save_network
from spem.train import checkpoint
from spem.train import folder as folders
from spem.train.recipe import Recipe


@pytest.fixture
def state():
    return {"weights": torch.randn(100), "history": [{"loss": 0.25, "top5": None}], "epoch": 3}


def test_a_checkpoint_reads_back_equal(tmp_path, state):
    checkpoint.save_checkpoint(tmp_path / "checkpoint.pt", state)
    loaded = checkpoint.load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def test_a_full_disk_is_an_error_of_the_system_and_the_last_checkpoint_stays(tmp_path, state):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save_checkpoint(path, state | {"weights": torch.zeros(10_000)})
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
            save_network(tmp_path, nn.Linear(100, 100), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_any_damage_to_a_checkpoint_is_found(tmp_path, state):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    whole = path.read_bytes()
    weights = whole.index(state["weights"].numpy().tobytes())
    altered = whole[:weights] + bytes([whole[weights] ^ 1]) + whole[weights + 1 :]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    other = (tmp_path / "other.zip").read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"text", altered, other):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            checkpoint.load_checkpoint(path)


def test_unnamed_folders_take_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, gated = Recipe(data="some/pictures"), Recipe(gate="spem")
    names = [str(folders.number_folder(recipe)) for recipe in (plain, gated, gated)]
    stems = ("resnet20-plain-pictures-0", "resnet20-spem-digits-0", "resnet20-spem-digits-1")
    assert names == [f"runs/{stem}" for stem in stems]


def test_an_overwritten_folder_loses_the_old_run_and_nothing_else(tmp_path):
    for name in (*folders.FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    recipe = Recipe(epochs=2)
    folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=True)
    folders.new_folder(tmp_path, recipe)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "notes.txt"}
    assert (tmp_path / "recipe.yaml").read_text() == recipe.to_yaml()


def test_a_folder_in_use_is_refused_unless_the_recipe_continues_it(tmp_path):
    recipe = Recipe(lr=0.2)
    folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=False)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        folders.refuse_folder(tmp_path, recipe, resume=True, overwrite=False)
    folders.new_folder(tmp_path, recipe)
    with pytest.raises(FileExistsError, match="exists"):
        folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=False)
    with pytest.raises(ValueError, match="exclude"):
        folders.refuse_folder(tmp_path, recipe, resume=True, overwrite=True)
    moved = Recipe(lr=0.2, data_dir="elsewhere", progress=False)
    folders.refuse_folder(tmp_path, moved, resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"epochs \(15 there, 3 now\), lr \(0.2 there, 0.1 now\)"):
        folders.refuse_folder(tmp_path, Recipe(epochs=3), resume=True, overwrite=False)
