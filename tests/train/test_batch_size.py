"""`batch_size: auto`: a number is found, recorded, kept by a resumed run, and refused elsewhere."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from runs import SMALL, net

from spem.cli import main
from spem.data.dataset import load_dataset
from spem.export.network import load_network
from spem.models import create_model
from spem.train import batch_size, fit
from spem.train.batch_size import free_memory, largest, step_bytes
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe

AUTO = replace(SMALL, batch_size="auto", epochs=1, crop=0)


def test_the_largest_size_up_to_which_all_fit_is_found():
    assert largest([2, 4, 8, 16], lambda size: size <= 9) == 8
    assert largest([2, 4], lambda size: True) == 4
    assert largest([2, 4], lambda size: False) is None


def test_a_run_records_the_number_and_goes_on_with_it(tmp_path, monkeypatch, capsys):
    images = load_dataset("digits").train.images
    each = step_bytes(replace(AUTO, mean=[0.5], std=[0.5]), net(), images)
    monkeypatch.setattr(batch_size, "free_memory", lambda: int(2 * 40 * each))
    recipe = replace(AUTO, schedule="constant")
    fit(recipe, model := net(), out=tmp_path / "run")
    assert "batch_size auto: 32 images a step" in capsys.readouterr().out
    assert load_recipe(str(tmp_path / "run/recipe.yaml")).batch_size == 32
    other = net()
    fit(replace(recipe, batch_size=32), other, out=tmp_path / "other")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    monkeypatch.setattr(batch_size, "free_memory", lambda: int(2 * 4 * each))
    longer = fit(replace(recipe, epochs=2), net(), out=tmp_path / "run", resume=True)
    assert load_recipe(str(tmp_path / "run/recipe.yaml")).batch_size == 32
    assert load_network(longer.folder, net())


def test_nothing_but_the_memory_decides(monkeypatch):
    monkeypatch.setattr(batch_size, "free_memory", lambda: 1 << 50)
    dataset, model = load_dataset("digits"), create_model("resnet8", "spem", in_channels=1)
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    recipe = replace(AUTO, mean=[0.5], std=[0.5])
    assert batch_size.fill_batch_size(recipe, model, dataset).batch_size == 128  # an eighth
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(batch_size, "free_memory", lambda: 100)
    with pytest.raises(ValueError, match="no batch of 2 images fits into memory: give a smaller"):
        batch_size.fill_batch_size(recipe, model, dataset)
    monkeypatch.undo()
    assert 0 < free_memory() < 1 << 45


def test_what_a_step_keeps_is_that_of_its_feature_maps():
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    recipe = replace(AUTO, mean=[0.5], std=[0.5])
    model = create_model("resnet8", "se", in_channels=1, reduction=4)
    small, large = (step_bytes(recipe, model, images[..., :side, :side]) for side in (8, 16))
    assert 3 < large / small < 4.1


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"accumulate": 2}, "accumulate must be 1 with batch_size auto, got 2"),
        ({"devices": 2}, "devices must be 1 with batch_size auto, got 2"),
        ({"replicas": 2}, "replicas must be 1 with batch_size auto, got 2"),
        ({"cuda_graph": True}, "cuda_graph must be false with batch_size auto, got True"),
        (
            {"batch_size": "all"},
            "batch_size must be a whole number from 1 to .*, or auto, got 'all'",
        ),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to .*, or auto, got 0"),
    ],
)
def test_what_it_excludes_is_refused(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**{"batch_size": "auto"} | keys)


def test_a_comparison_refuses_it_and_a_drawing_does_not_need_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--data", "digits", "--model", "resnet8", "--batch-size", "auto"]
    assert main([*words, "--out", "compared"]) == 2
    assert "batch_size is auto, must be a number in a comparison" in capsys.readouterr().err
    assert main(["data", "digits", "--batch-size", "auto"]) == 0
    with pytest.raises(SystemExit):
        main(["train", "--batch-size", "all"])
    assert "--batch-size must be INT|auto, got 'all'" in capsys.readouterr().err
