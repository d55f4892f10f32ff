"""The trained networks that this checkout holds."""

import re

import pytest
from PIL import Image
from weights import check_card, check_weights, example

from spem.cli import main
from spem.export.network import load_network
from spem.models import pretrained
from spem.train.recipe_files import load_recipe

BUNDLED = pretrained.bundled_names()
EACH_BUNDLED = pytest.mark.parametrize("name", BUNDLED)


@EACH_BUNDLED
def test_a_bundled_network_is_what_its_files_say(name):
    folder = pretrained.FOLDER / name
    assert (folder / "model.safetensors").stat().st_size <= 2_000_000
    config = pretrained.bundled_config(name)
    assert pretrained.bundled_name(config["model"], config["gate"], config["data"]) == name
    check_card(folder)
    model, _ = load_network(folder)
    check_weights(model, folder)
    check_weights(example(folder), folder)
    recipe = load_recipe(str(folder / "recipe.yaml"))
    assert (recipe.model, recipe.gate, recipe.data) == tuple(name.split("-"))
    assert recipe.data_dir == "data"


@EACH_BUNDLED
def test_a_bundled_network_names_what_it_sees(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (90, 140, 200)).save("picture.png")
    assert main(["predict", name, "picture.png"]) == 0
    rows = re.findall(r"│ picture.png │ (\w+) +│ ([\d.e-]+)", capsys.readouterr().out)
    assert len(rows) == 5
    assert {label for label, _ in rows} <= set(pretrained.bundled_config(name)["classes"])


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_help_lists_the_bundled_networks(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # at less, names are broken at their hyphens
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    named = re.findall(r"\b\w+-\w+-cifar\d+", capsys.readouterr().out)
    assert sorted(named) == BUNDLED
