"""Dropout and stochastic depth of libraries' networks: set, stored, with gates, or refused."""

import json
from dataclasses import replace

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise, randomise_norms
from torch import nn

from spem.export.network import load_network
from spem.models import create_model
from spem.models.libraries import network_of
from spem.train import fit, load_recipe
from spem.train.identity import record_key

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TINY = {"image_size": 16, "epochs": 1, "progress": False, "precision": "32", "batch_size": 512}
CONFIGS = {
    "ConvNextConfig": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "MobileNetV2Config": {"depth_multiplier": 0.35},
    "ResNetConfig": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
}


@pytest.fixture
def folders(tmp_path):
    """Configurations of Hugging Face's networks in folders."""
    for kind, sizes in CONFIGS.items():
        getattr(transformers, kind)(**sizes).save_pretrained(tmp_path / kind)
    return tmp_path


def create(name, folders, gate=None, **keys):
    prefix, _, own = name.partition(":")
    torch.manual_seed(0)
    return create_model(f"hf:{folders / own}" if prefix == "hf" else name, gate, 5, **keys)


def probabilities(model):
    """Of dropout, and of all other modules that drop."""
    found = {"dropout": set(), "drop_path": set()}
    for module in network_of(model).modules():
        own = vars(module)
        key = "dropout" if isinstance(module, nn.Dropout) or "drop_rate" in own else "drop_path"
        found[key] |= {own[n] for n in ("p", "drop_prob", "drop_rate") if n in own}
    return found


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("timm:resnet10t", "dropout"),
        ("timm:resnet10t", "drop_path"),
        ("timm:test_vit", "dropout"),
        ("torchvision:mobilenet_v3_small", "dropout"),
        ("torchvision:densenet121", "dropout"),
        ("torchvision:convnext_tiny", "drop_path"),
        ("hf:MobileNetV2Config", "dropout"),
        ("hf:ConvNextConfig", "drop_path"),
    ],
)
def test_a_probability_is_set_where_the_library_has_it(name, key, folders):
    model = create(name, folders, **{key: 0.375})
    assert 0.375 in probabilities(model)[key]
    assert getattr(model.config, key) == 0.375
    assert 0.375 not in probabilities(create(name, folders))[key]
    torch.manual_seed(1)
    randomise_norms(model).train()
    assert not torch.equal(model(X), model(X))
    plain = create(name, folders)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(X), plain.eval()(X))


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [
        ("torchvision:resnet18", "dropout", "dropout"),
        ("torchvision:resnet18", "drop_path", "stochastic depth"),
        ("torchvision:convnext_tiny", "dropout", "dropout"),  # its arguments swallow it
        ("torchvision:mobilenet_v3_small", "drop_path", "stochastic depth"),
        ("timm:vgg11_bn", "drop_path", "stochastic depth"),
        ("hf:ResNetConfig", "dropout", "dropout"),
        ("hf:ResNetConfig", "drop_path", "stochastic depth"),
    ],
)
def test_a_network_without_it_refuses(name, key, what, folders):
    with pytest.raises(ValueError, match=f"^{key} is given, but .* has no {what}: leave {key} out"):
        create(name, folders, **{key: 0.1})


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:test_convnext"])
@pytest.mark.parametrize("gate", EACH_GATE)
def test_gates_stay_identities_and_get_gradients_with_stochastic_depth(gate, name, folders):
    options = OPTIONS.get(gate, {})
    model = randomise(create(name, folders, gate, drop_path=0.5, **options))
    plain = create(name, folders, gate, **options)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(X), plain.eval()(X))
    torch.manual_seed(2)
    outputs = model.train()(X)
    assert outputs.isfinite().all()
    outputs.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_recipe_sets_both_and_the_folder_of_the_run_knows_them(tmp_path):
    keys = {"model": "timm:resnet10t", "gate": "spem", "dropout": 0.25, "drop_path": 0.125}
    recipe = load_recipe("digits", **keys, **TINY)
    result = fit(recipe, out=tmp_path / "run")
    assert 0.25 in probabilities(result.model)["dropout"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["dropout"], config["drop_path"]) == (0.25, 0.125)
    assert 0.125 in probabilities(load_network(tmp_path / "run")[0])["drop_path"]
    assert record_key(recipe) != record_key(replace(recipe, dropout=None))


def test_a_given_network_has_what_it_was_built_with(tmp_path):
    model = create_model("timm:resnet10t", None, 10, 1, dropout=0.25)
    recipe = load_recipe("digits", **TINY)
    with pytest.raises(ValueError, match=r"^drop_path is 0\.5, but a given model has what it was"):
        fit(replace(recipe, drop_path=0.5), model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fit(recipe, model, out=tmp_path / "run")
    assert load_recipe(str(tmp_path / "run/recipe.yaml")).dropout == 0.25
