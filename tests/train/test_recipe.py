import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from spem.data import cifar
from spem.train import recipe_files
from spem.train.identity import deciding_keys, record_key
from spem.train.recipe import NAMED_DATA, Recipe
from spem.train.recipe_files import load_recipe, recipe_names

PAPER = {  # METHODS section 21
    "model": "resnet164",
    "gate": "spem",
    "gate_options": {"alpha": 0.1},
    "data": "cifar10",
    "validation": None,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2023, 0.1994, 0.2010],
    "crop": 4,
    "flip": True,
    "epochs": 164,
    "batch_size": 128,
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 1e-4,
    "schedule": "step",
    "milestones": [81, 122],
    "gamma": 0.1,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "clip_gradient": None,
    "ema": None,
    "accumulate": 1,
    "precision": "32",
}


def test_paper_is_the_published_recipe_with_every_key_written_out():
    written = yaml.safe_load((recipe_files._RECIPES / "paper.yaml").read_text())
    assert list(written) == [field.name.rstrip("_") for field in fields(Recipe)]
    paper = asdict(load_recipe("paper"))
    assert {key: paper[key] for key in PAPER} == PAPER


@pytest.mark.parametrize("name", ["cifar_quick", "digits", "paper"])
def test_a_recipe_written_as_yaml_reads_back_equal(name, tmp_path):
    assert name in recipe_names()
    recipe = load_recipe(name, lr=1e-5, ema=0.999)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_every_field_is_documented():
    described = re.findall(r"^        (\w+): ", Recipe.__doc__ or "", re.MULTILINE)
    assert described[:-1] == [field.name for field in fields(Recipe)]  # the last is ValueError


def test_numbers_without_a_point_and_none_are_understood(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("weight_decay: 1e-4\nlr: 5E-2\nvalidation: none\ngate: none\n")
    recipe = load_recipe(str(path))
    assert (recipe.weight_decay, recipe.lr) == (1e-4, 5e-2)
    assert recipe.validation is None
    assert recipe.gate is None


def test_recipes_of_older_releases_load_and_keep_their_keys(tmp_path):
    (tmp_path / "recipe.yaml").write_text("threads: 2\n")
    older = load_recipe(str(tmp_path / "recipe.yaml"))
    assert older.threads == 2
    assert Recipe().threads is None
    assert record_key(older) == record_key(Recipe())


@pytest.mark.parametrize("study", ["cifar10-quick", "digits-paper"])
def test_records_of_older_releases_are_those_of_the_same_runs_now(study):
    records = Path(__file__).parents[2] / "docs" / "results" / study / "records.jsonl"
    record = json.loads(records.read_text().partition("\n")[0])
    assert record_key(Recipe(**record["recipe"])) == record["key"]


def test_a_new_key_enters_the_key_of_a_run_only_with_another_value():
    assert "on_bad_image" not in deciding_keys(Recipe())
    assert record_key(Recipe(on_bad_image="skip")) != record_key(Recipe())


def test_a_folder_of_images_does_not_take_the_mean_of_other_data(tmp_path):
    assert ("digits", *cifar.LAYOUTS) == NAMED_DATA
    cifar_mean = load_recipe("cifar_quick").mean
    assert load_recipe("cifar_quick", data="cifar100").mean == cifar_mean
    photos = load_recipe("cifar_quick", data="photos")
    assert photos.mean is photos.std is None
    assert load_recipe("cifar_quick", data="photos", mean=[0.1] * 3).mean == [0.1] * 3
    (tmp_path / "own.yaml").write_text("data: photos\nmean: [0.2, 0.2, 0.2]\n")
    assert load_recipe(str(tmp_path / "own.yaml"), data="photos").mean == [0.2] * 3


def test_overrides_replace_the_files_values_and_another_gate_starts_without_options():
    assert load_recipe("paper", epochs=3).epochs == 3
    assert load_recipe("paper", gate="se").gate_options == {}
    assert load_recipe("paper", gate="none").gate_options == {}
    assert load_recipe("paper", gate="spem").gate_options == {"alpha": 0.1}


def test_another_gate_starts_without_placement_and_mask(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("gate: spem\nblock: basic\nplacement: norm\nmask: [1, 0]\n")
    same, other = load_recipe(str(path), gate="spem"), load_recipe(str(path), gate="se")
    assert (same.block, same.placement, same.mask) == ("basic", "norm", [1, 0])
    assert (other.block, other.placement, other.mask) == ("basic", None, None)
    assert load_recipe(str(path), gate="se", mask=[0, 1]).mask == [0, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "ten"),
        ("epochs", True),
        ("batch_size", -1),
        ("lr", 0),
        ("lr", float("nan")),
        ("lr", "0,1"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("milestones", [122, 81]),
        ("milestones", [81, 81]),
        ("milestones", [0, 81]),
        ("label_smoothing", 1),
        ("ema", 1.0),
        ("ema", 0),
        ("validation", 1.0),
        ("accumulate", 0),
        ("accumulate", 999),
        ("clip_gradient", 0),
        ("crop", -1),
        ("mean", 0.5),
        ("std", [0.5, 0.0, 0.5]),
        ("flip", 1),
        ("threads", 0),
        ("threads", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("model", None),
        ("gate_options", None),
        ("gate_options", {"mask": [1, 0]}),
        ("gate_options", {1: 2}),
        ("mask", [1, 2]),
        ("mask", [True]),
        ("mask", 1),
        ("placement", 1),
        ("block", 1),
        ("folds", 1),
        ("folds", 2.5),
        ("fold", 1),
    ],
)
def test_a_value_that_is_not_allowed_is_named(key, value):
    with pytest.raises(ValueError, match=f"^{key} must be .*{re.escape(repr(value))}"):
        Recipe(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("schedule", "cos", "cosine"), ("precision", "bf16", "bf16-mixed"), ("device", "gpu", "cpu")],
)
def test_an_unknown_choice_names_the_nearest_first(key, value, nearest):
    with pytest.raises(ValueError, match=f"unknown {key} '{value}'; known: {nearest}"):
        Recipe(**{key: value})


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        Recipe(nesterov=True, momentum=0)


def test_unknown_keys_and_recipes_name_the_nearest_first():
    with pytest.raises(ValueError, match="unknown recipe key 'batchsize'; known: batch_size"):
        load_recipe("digits", batchsize=3)
    with pytest.raises(ValueError, match="unknown recipe 'papper'; known: paper"):
        load_recipe("papper")


@pytest.mark.parametrize("text", [b"epochs: [", b"epochs", b"- epochs", b"model: caf\xe9"])
def test_a_file_that_is_no_recipe_is_named(text, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_recipe(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_recipe("nowhere.yaml")
