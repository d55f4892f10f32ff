"""Names of other libraries' networks where these are not installed, and the keys of recipes."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from spem.models import create_model
from spem.surgery.config import NetworkConfig
from spem.train import fit, load_recipe
from spem.train.identity import record_key
from spem.train.recipe import Recipe
from spem.train.resolving import resolve

TINY = {"model": "resnet8", "epochs": 1, "progress": False, "batch_size": 512}


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "hf:a/b"])
def test_a_library_that_is_not_installed_is_named(name):
    package = {"timm": "timm", "hf": "transformers"}.get(name.partition(":")[0], "torchvision")
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=f"network of {package}, .*: pip install {package}$"):
        create_model(name)


def test_an_unknown_library_is_refused():
    with pytest.raises(ValueError, match="unknown library 'tmm'; known: timm, "):
        create_model("tmm:resnet18")


def test_at_and_pretrained_change_no_key_of_earlier_recipes():
    recipe = Recipe(gate="se")
    assert record_key(resolve(recipe)) == record_key(resolve(replace(recipe, init="paper")))
    plain = resolve(replace(recipe, gate=None, model="timm:resnet18", at="stage"))
    assert plain.at is None  # of no gate: one run with any `at`


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ({}, {}),
        ({"pretrained": True}, {"init": "identity"}),
        ({"weights": "w.pth"}, {"init": "identity"}),
        ({"weights": "w.pth", "init": "paper"}, {}),
        ({"model": "resnet20", "weights": "w.pth"}, {}),
        ({"pretrained": True, "gate": "iebn"}, {"init": "identity"}),
    ],
)
def test_gates_of_a_trained_backbone_start_as_the_identity(keys, options):
    recipe = Recipe(**{"model": "timm:resnet18", "gate": "spem", **keys})
    assert resolve(recipe).gate_options == options


def test_config_says_what_is_not_of_this_library():
    config = NetworkConfig(
        "timm:resnet18", "se", at=["a"], library={"name": "timm", "version": "1"}
    )
    assert NetworkConfig.from_json(config.to_json()) == config
    assert "library" not in config.arguments()
    assert "library" not in NetworkConfig("resnet20").to_json()
    assert config.without_gates().at is None


@pytest.mark.parametrize("init", [None, "identity", "paper"])
def test_a_run_from_weights_without_gates_says_how_these_start(init, tmp_path, capsys):
    torch.save(create_model("resnet8", in_channels=1).state_dict(), tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    recipe = load_recipe("digits", gate="se", weights=weights, init=init, **TINY)
    if init is None:
        with pytest.raises(ValueError, match=r"there are no gates in .*: give init ident"):
            fit(recipe, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    fit(recipe, out=tmp_path / "run")
    way = "as the identity" if init == "identity" else "as their authors start them"
    assert f"the gates start {way}: there are none in {weights}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"pretrained": True}, "pretrained is for networks of other libraries, not for resnet8"),
        ({"pretrained": True, "weights": "w"}, "pretrained must be false with weights, got True"),
        ({"gate": "se", "at": "stage"}, "at is 'stage', but 'resnet8' has placement instead"),
        ({"at": []}, r"at must be a text, or a list of texts, got \[\]"),
        ({"at": 3}, "at must be a text, or a list of texts, got 3"),
    ],
)
def test_keys_that_do_not_fit_are_refused_before_anything_is_written(keys, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        fit(load_recipe("digits", **TINY, **keys), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["dropout", "drop_path"])
@pytest.mark.parametrize("name", ["resnet8", "vgg11", "densenet22", "preresnet8"])
def test_networks_of_this_library_have_no_dropout(name, key, tmp_path):
    message = f"{key} is 0.1, but '{name}' has none: leave it out, or name a network of another"
    with pytest.raises(ValueError, match=message):
        create_model(name, **{key: 0.1})
    recipe = load_recipe("digits", **TINY | {"model": name, key: 0.1})
    with pytest.raises(ValueError, match=message):
        fit(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [1, -0.1, True, "half", float("nan")])
def test_a_probability_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"dropout is .*, must be in \[0, 1\)"):
        create_model("timm:resnet18", dropout=value)
