"""`spem models`, and what `train` says of the network that it built."""

import re
from dataclasses import replace

import pytest
import torch
from runs import SMALL
from torch import nn

from spem import attach, create_model
from spem.cli import main
from spem.models import registry
from spem.models.names import USUAL, imagenet_note
from spem.train.devices import create_fabric
from spem.train.resolving import resolve
from spem.train.setup import describe, prepare


def test_models_are_listed_with_their_size(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["models", "resnet5?", "preresnet20", "resnet14"]) == 0
    printed = capsys.readouterr().out
    names = re.findall(r"│ ([a-z]+\d+) ", printed)
    assert names == ["resnet50", "resnet56", "preresnet20", "resnet14"]
    row = r"resnet50 +│ 758,554 +│ 111\.6 M +│ 3×32×32 │ a CIFAR network, not ImageNet's ResNet-50"
    assert re.search(row, printed)
    assert re.search(r"resnet56 .*3×32×32 │ +│", printed)


def test_a_network_that_cannot_be_built_is_listed_with_its_reason(capsys, monkeypatch):
    def build(num_classes, in_channels):
        raise RuntimeError("no weights")

    monkeypatch.setitem(registry.MODELS, "bad", build)
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["models", "bad", "resnet8"]) == 0
    printed = capsys.readouterr().out
    assert "cannot be built here: no weights" in printed
    assert "resnet8" in printed
    assert main(["models", "resnet21"]) == 2


def test_networks_of_the_users_are_listed_too(capsys, monkeypatch, tmp_path):
    for name, size in (("small8", 32), ("large8", 99)):
        build = lambda num_classes, in_channels, n=size: nn.Conv2d(in_channels, num_classes, n)  # noqa: E731
        monkeypatch.setitem(registry.MODELS, name, build)
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["models", "*8"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"│ resnet8 ", printed)
    assert re.search(r"│ small8 +│ 30,730 +│ 0\.0 M ", printed)
    assert re.search(r"│ large8 +│ 294,040 +│ - +│ 3×32×32 │ takes no images of this size", printed)


@pytest.mark.parametrize("name", USUAL)
def test_every_usual_name_can_be_built(name):
    with torch.device("meta"):
        assert create_model(name).config.model == name


def test_depths_of_imagenet_get_a_note():
    noted = {name for name in USUAL if name.startswith("resnet") and imagenet_note(name)}
    assert noted == {"resnet50", "resnet101", "resnet152"}
    for depth in (18, 34):
        with pytest.raises(ValueError, match=rf"ImageNet's ResNet-{depth}, give spem\.attach"):
            create_model(f"resnet{depth}")
    with pytest.raises(ValueError, match=r"29, 164\)$"):
        create_model("resnet21")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"model": "resnet8"}, "resnet8 without gates: 77,754 parameters, 0.8 M multiply-adds per"),
        ({"model": "resnet8", "gate": "se"}, "resnet8 with se gates: "),
        ({"model": "resnet50"}, "10 classes (a CIFAR network, not ImageNet's ResNet-50)"),
    ],
)
def test_train_says_what_it_built(keys, line):
    recipe = resolve(replace(SMALL, **keys))
    said = describe(prepare(create_fabric(recipe), recipe))
    assert line in said
    assert "per 1×8×8 image, 10 classes" in said
    assert "\n" not in said


def test_train_names_the_gates_of_a_network_of_the_users():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    attach(network, "spem", at="1")
    recipe = resolve(SMALL, network)
    assert "Sequential with spem gates: " in describe(
        prepare(create_fabric(recipe), recipe, network)
    )
