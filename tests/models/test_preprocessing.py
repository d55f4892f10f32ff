"""How pictures are prepared for a network that says it: in recipes, runs and predictions."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from pictures import draw_noise

from spem._schema import check_value
from spem.cli import main
from spem.data.dataset import load_dataset
from spem.models.preprocessing import Preprocessing
from spem.models.registry import MODELS, PREPROCESSING, register_model
from spem.train import fit, load_recipe
from spem.train.identity import deciding_keys
from spem.train.recipe import Recipe
from spem.train.resolving import resolve

OWN = """
import torch
import spem


@spem.register_model("photonet", mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2], image_size=12,
                     interpolation="bicubic", crop_ratio=0.75)
def build(num_classes, in_channels):
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, num_classes)]
    norm = torch.nn.BatchNorm2d(8)
    return torch.nn.Sequential(torch.nn.Conv2d(in_channels, 8, 3), norm, torch.nn.ReLU(), *pool)
"""
VALUES = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "image_size": 12}
VALUES |= {"interpolation": "bicubic", "crop_ratio": 0.75}


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Two classes of twelve noisy pictures of 40×30 pixels, and a file with a network for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spem.models.user_files._run", [])
    noise = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        draw_noise(tmp_path / "photographs" / name, 12, (40, 30), noise)
    Path("own.py").write_text(OWN)
    yield "photographs"
    for registry in (PREPROCESSING, MODELS):
        registry.pop("photonet", None)
    for name in [name for name in sys.modules if name.startswith("spem_import_own_")]:
        del sys.modules[name]


def recipe_for(folder, **keys):
    keys = {"import": ["own.py"], "model": "photonet", "epochs": 1, "progress": False} | keys
    return load_recipe("cifar_quick", data=folder, batch_size=8, precision="32", **keys)


def test_a_file_says_how_the_pictures_for_its_network_are_prepared(photographs):
    found = resolve(recipe_for(photographs))
    assert {key: getattr(found, key) for key in VALUES} == VALUES
    assert resolve(found) == found
    for key, own in (("image_size", 20), ("mean", [0.1] * 3), ("interpolation", "nearest")):
        given = resolve(recipe_for(photographs, **{key: own}))
        assert {k: getattr(given, k) for k in VALUES} == VALUES | {key: own}
    cifar = resolve(load_recipe("cifar_quick", model="photonet", data="cifar10", mean=None))
    assert (cifar.mean, cifar.std[0]) == (VALUES["mean"], 0.2023)
    assert (cifar.image_size, cifar.interpolation, cifar.crop_ratio) == (32, None, None)
    digits = resolve(Recipe(model="photonet", data="digits"))
    assert (digits.mean, digits.std) == ([0.4], [0.2])


def test_networks_that_say_nothing_keep_their_pictures_and_the_keys_of_their_runs(photographs):
    found = resolve(recipe_for(photographs, model="resnet8"))
    assert (found.image_size, found.mean) == (32, None)  # which is measured
    assert (found.interpolation, found.crop_ratio) == (None, None)
    assert not {"interpolation", "crop_ratio"} & deciding_keys(found).keys()


def test_the_folder_of_a_run_evaluates_and_predicts_with_the_same_pixels(photographs, capsys):
    gated = {"gate": "se", "gate_options": {"reduction": 4}, "placement": "1"}
    result = fit(recipe_for(photographs, **gated), out="run")
    stored = load_recipe("run/recipe.yaml")
    assert {key: getattr(stored, key) for key in VALUES} == VALUES
    config = json.loads(Path("run/config.json").read_text())
    assert (config["interpolation"], config["crop_ratio"]) == ("bicubic", 0.75)
    assert fit(stored, out="run", resume=True).folder == result.folder
    options = {key: VALUES[key] for key in ("image_size", "interpolation", "crop_ratio")}
    data = load_dataset(photographs, **options)
    assert main(["evaluate", "run", "--import", "own.py"]) == 0
    files = [str(file) for file in data.folder.files["test"]]
    words = ["predict", "run", *files, "--logits", "--csv", "found.csv", "--import", "own.py"]
    assert main(words) == 0
    mean, std = (torch.tensor(VALUES[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = result.model((data.test.images / 255 - mean) / std)
    with Path("found.csv").open() as file:
        rows = [[float(row["logit.cat"]), float(row["logit.dog"])] for row in csv.DictReader(file)]
    torch.testing.assert_close(torch.tensor(rows), expected, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert main(["data", photographs, "--model", "photonet", "--import", "own.py"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "brought to 12×12 (image_size)" in printed
    assert "resized by bicubic interpolation, 0.75 of the shorter side cut out" in printed


def test_a_comparison_takes_each_network_its_own_pictures(photographs):
    words = ["compare", "--data", photographs, "--model", "photonet", "resnet8", "--gates", "none"]
    words += ["--import", "own.py", "--seeds", "1", "--epochs", "1", "--batch-size", "8"]
    assert main([*words, "--no-progress", "--no-costs", "--out", "compared"]) == 0
    configs = [
        json.loads(path.read_text()) for path in Path("compared").glob("cells/*/config.json")
    ]
    found = {each["model"]: (each["image_size"], each.get("crop_ratio")) for each in configs}
    assert found == {"photonet": ([12, 12], 0.75), "resnet8": ([32, 32], None)}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"mean": 0.5, "std": [0.5]}, "mean must be a list of numbers, got 0.5"),
        ({"mean": [0.5]}, "mean and std must be given together"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "with as many numbers each"),
        ({"mean": [0.5], "std": [0]}, "std must be a list of numbers above 0"),
        ({"image_size": 0}, "image_size must be a whole number from 1"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; known: bicubic, "),
        ({"crop_ratio": 1.5}, "crop_ratio must be a number above 0, at most 1, got 1.5"),
    ],
)
def test_values_that_are_not_allowed_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        register_model("photonet", **values)
    if len(values) == 1 and "mean" not in values:
        with pytest.raises(ValueError, match=sentence):
            Recipe(**values)


def test_named_data_are_not_cut(tmp_path):
    for key, value in (("interpolation", "bicubic"), ("crop_ratio", 0.9)):
        with pytest.raises(ValueError, match=f"{key} is .*, must be None for digits, no folder"):
            load_dataset("digits", **{key: value})
        with pytest.raises(ValueError, match=f"{key} is .*, must be None for digits, no folder"):
            fit(Recipe(**{key: value}), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_all_attributes_have_a_type():
    for value in (Preprocessing(), Preprocessing(**VALUES)):
        value.check()
    check_value("crop_ratio", VALUES["crop_ratio"], Recipe.__dataclass_fields__["crop_ratio"].type)
