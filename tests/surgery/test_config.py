"""The configuration of a network, and the JSON in which run folders keep it."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from torch import nn

from spem import create_model
from spem.models import pretrained
from spem.surgery import NetworkConfig, config_of


def test_a_network_is_built_again_from_the_json_of_its_config():
    options = {"placement": "conv", "mask": [1] * 9, "block": "basic", "alpha": 0.2}
    config = create_model("resnet8", "spem", 7, 1, **options).config
    content = config.to_json()
    assert list(content) == [
        "model",
        "gate",
        "num_classes",
        "in_channels",
        "block",
        "placement",
        "mask",
        "gate_options",
    ]
    read = NetworkConfig.from_json(json.loads(json.dumps(content | {"classes": ["a"]})))
    assert read == config
    assert create_model(**read.arguments()).config == config
    assert NetworkConfig.from_json({"model": "resnet8"}) == NetworkConfig("resnet8")


def test_a_config_is_replaced_and_not_changed():
    config = create_model("resnet8", "spem", mask=[1, 0, 1], alpha=0.2).config
    with pytest.raises(FrozenInstanceError):
        config.gate = None
    assert replace(config, mask=None).mask is None
    assert config.without_gates() == create_model("resnet8").config


def test_only_a_config_of_this_library_is_read():
    model = nn.Linear(1, 1)
    assert config_of(model) is None
    vars(model)["config"] = {"model": "resnet8"}
    assert config_of(model) is None


def test_the_configs_of_the_bundled_networks_keep_their_bytes():
    for name in pretrained.bundled_names():
        text = (pretrained.FOLDER / name / "config.json").read_text(encoding="utf-8")
        content = json.loads(text)
        again = {**content, **NetworkConfig.from_json(content).to_json()}
        again = {key: again[key] for key in content}
        assert json.dumps(again, indent=2) + "\n" == text
        assert list(content)[:8] == list(NetworkConfig.from_json(content).to_json())


@pytest.mark.parametrize("parity", [False, True])
def test_a_config_with_the_retired_option_parity_loads(parity, recwarn):
    content = {"model": "resnet8", "gate": "srm", "gate_options": {"parity": parity}}
    model = create_model(**NetworkConfig.from_json(content).arguments())
    assert model.config.gate_options == {"parity": parity}
    assert len(recwarn) == parity
