"""Whatever an argument is: what was asked for, or a sentence that names what is allowed."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import limits
from proof import cases, numbers_of
from torch import nn

import spem
from spem import create_gate, create_model, functional
from spem._messages import printable
from spem.compare import load_study
from spem.data import Batches, Split, load_dataset, prepare_image
from spem.export import load_network, load_weights
from spem.gates import GATES, gate_options
from spem.report import report
from spem.train import Recipe, fit, load_recipe

NASTY = [
    *(None, True, False, 0, 1, 2, 3, 4, 7, 8, 16, 64, -1, 999, 1000, 2**16, 2**31, 10**9, 10**400),
    *(0.0, 0.5, 1.0, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf, 0j),
    *("", "avg", "max", "min", "adaptive", "fixed", "srp", "squared", "sigmoid", "code", "figure"),
    *(
        "paper",
        "identity",
        "top16",
        "low8",
        "bot1",
        "top33",
        "icme-a",
        "tmm-c",
        "se",
        "sem",
        "both",
    ),
    *("x\x1b[31m", "x" * 10_000, [], {}, (), [1], {"a": 1}, ("avg", "max"), ["avg", []], object()),
    *(np.int64(4), np.float32(0.5), np.zeros(2), torch.tensor(3), torch.zeros(2, 2), len, int),
]
RIGHT = {"srp": {"rho": 0.5}, "sge": {"groups": 4}}
NEEDED = {name: RIGHT.get(name, {}) for name in GATES}


ALLOWED = (ValueError, FileNotFoundError, IsADirectoryError, OSError)  # of a name that is too long


def refuse(error, words):
    """Check that an error is one short sentence of the right kind."""
    # Python's own sentence for a name that a function does not have, and for one that is missing.
    own = isinstance(error, TypeError) and re.search("keyword argument|positional arg", str(error))
    if not own and type(error) not in ALLOWED:
        raise AssertionError(f"{words}: {error!r}"[:2000]) from error
    # The path of a file is in it as it is; commands write it out.
    text = printable(str(error)) if "there is no" in str(error) else str(error)
    assert re.fullmatch(r"[^\n\x1b]{1,600}", text), f"{words}: {error}"


def attempt(call, words):
    """Call, within the limits; return what it gives, or None where it was refused."""
    with limits(words), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception as error:
            refuse(error, words)
    return None


@pytest.mark.parametrize("numbers", cases(50_000, 300))
def test_a_gate_works_or_says_what_is_allowed(numbers):
    built = 0
    for number in numbers:
        draw = numbers_of(number)
        name = draw.choice(list(GATES))
        options = dict(NEEDED[name])
        for option in draw.sample(list(gate_options(name)), draw.choice((1, 1, 2))):
            options[option] = draw.choice(NASTY)
        channels = draw.choice(NASTY) if draw.random() < 0.1 else draw.choice((4, 16, 64))
        words = f"case {number}: create_gate({name!r}, {channels!r:.50}, {options!r:.300})"
        gate = attempt(lambda: create_gate(name, channels, **options), words)  # noqa: B023
        if gate is None or not isinstance(channels, int) or channels > 64:
            continue
        built += 1
        x = torch.randn(2, channels, 5, 4)
        out = attempt(lambda: gate(x), words)  # noqa: B023
        assert out is None or out.shape == x.shape, words
    assert built


MODELS = ["resnet8", "resnet20", "vgg11", "densenet10", "attention56", "preresnet20"]
MODELS += [
    "resnet020",
    "resnet7",
    "resnet99999998",
    "vgg12",
    "attention-1",
    "",
    "x\x1b[1m",
    "RESNET20",
]


@pytest.mark.parametrize("numbers", cases(25_000, 100))
def test_a_network_is_built_or_says_what_is_allowed(numbers):
    keys = [
        "gate",
        "num_classes",
        "in_channels",
        "block",
        "placement",
        "mask",
        "pretrained",
        "alpha",
    ]
    for number in numbers:
        draw = numbers_of(number)
        name = draw.choice(NASTY) if draw.random() < 0.1 else draw.choice(MODELS)
        chosen = draw.sample(keys, draw.choice((1, 1, 2)))
        options = {key: draw.choice(NASTY) for key in chosen}
        words = f"case {number}: create_model({name!r:.50}, {options!r:.300})"
        model = attempt(lambda: create_model(name, **options), words)  # noqa: B023
        assert model is None or isinstance(model, nn.Module)


def feature_maps(draw):
    shape = draw.choice(
        [(2, 4, 3, 3), (2, 4, 0, 3), (0, 4, 3, 3), (4, 3, 3), (2, 4), (), (2, 5, 3, 3)]
    )
    dtype = draw.choice([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64])
    x = torch.zeros(shape, dtype=dtype)
    return x.requires_grad_(x.is_floating_point() and draw.random() < 0.3)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def enter(context):
    with context:
        pass


PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "max-and-min.png"
SPLIT = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
CALLS = {
    "pool": lambda draw, value: functional.pool(feature_maps(draw)),
    "pool: x": lambda draw, value: functional.pool(value),
    "pool: statistics": lambda draw, value: functional.pool(torch.zeros(1, 4, 2, 2), value),
    "recalibrate: x": lambda draw, value: functional.recalibrate(value, torch.ones(1, 4)),
    "recalibrate: scale": lambda draw, value: functional.recalibrate(torch.ones(1, 4, 2, 2), value),
    "recalibrate": lambda draw, value: functional.recalibrate(
        feature_maps(draw), feature_maps(draw)
    ),
    "recalibrate: residual": lambda draw, value: functional.recalibrate(
        torch.ones(1, 4, 2, 2), torch.ones(1, 4), residual=value
    ),
    "gate: x": lambda draw, value: create_gate("spem", 4)(feature_maps(draw)),
    "gate: no x": lambda draw, value: create_gate("se", 4, reduction=2)(value),
    "attach: model": lambda draw, value: spem.attach(value, "spem"),
    "attach: gate": lambda draw, value: spem.attach(network(), value),
    "attach: at": lambda draw, value: spem.attach(network(), "spem", at=value),
    "attach: mask": lambda draw, value: spem.attach(network(), "spem", at="1", mask=value),
    "detach": lambda draw, value: spem.detach(value),
    "deploy": lambda draw, value: spem.deploy(value),
    "deploy: example": lambda draw, value: spem.deploy(network(), example=value),
    "load_backbone": lambda draw, value: spem.load_backbone(network(), value),
    "load_backbone: model": lambda draw, value: spem.load_backbone(value, {}),
    "load_backbone: ignore": lambda draw, value: spem.load_backbone(
        network(), network().state_dict(), ignore=value
    ),
    "gate_report": lambda draw, value: spem.gate_report(value),
    "create_gate": lambda draw, value: create_gate(value, 4),
    "convert_official": lambda draw, value: spem.convert_official(value, {}),
    "convert_official: state": lambda draw, value: spem.convert_official("se", value),
    "auxiliary_loss": lambda draw, value: spem.auxiliary_loss(value),
    "register": lambda draw, value: spem.register(value),
    "register_model": lambda draw, value: spem.register_model(value),
    "kernels.use": lambda draw, value: enter(spem.kernels.use(value)),
    "kernels.why_not": lambda draw, value: spem.kernels.why_not(value),
    "load_recipe": lambda draw, value: load_recipe(value),
    "load_study": lambda draw, value: load_study(value),
    "fit": lambda draw, value: fit(value),
    "fit: model": lambda draw, value: value is None or fit(Recipe(model="resnet8"), value),
    "load_network": lambda draw, value: load_network(value),
    "load_weights": lambda draw, value: load_weights(network(), value),
    "load_weights: model": lambda draw, value: load_weights(value, "resnet20-spem-cifar10"),
    "load_dataset": lambda draw, value: load_dataset(value),
    "load_dataset: validation": lambda draw, value: load_dataset("digits", validation=value),
    "load_dataset: size": lambda draw, value: load_dataset("digits", image_size=value),
    "load_dataset: seed": lambda draw, value: load_dataset("digits", seed=value),
    "prepare_image": lambda draw, value: prepare_image(value, size=8, channels=3),
    "prepare_image: size": lambda draw, value: prepare_image(PICTURE, size=value, channels=3),
    "prepare_image: channels": lambda draw, value: prepare_image(PICTURE, size=8, channels=value),
    "Batches: size": lambda draw, value: Batches(SPLIT, value),
    "Batches: mean": lambda draw, value: Batches(SPLIT, mean=value, std=[1, 1, 1]),
    "Batches: std": lambda draw, value: Batches(SPLIT, mean=[1, 1, 1], std=value),
    "Batches: crop": lambda draw, value: Batches(SPLIT, crop=value),
    "report": lambda draw, value: report(value),
}


@pytest.mark.parametrize("numbers", cases(25_000, 200))
def test_a_function_works_or_says_what_is_allowed(numbers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in numbers:
        draw = numbers_of(number)
        name, value = draw.choice(list(CALLS)), draw.choice(NASTY)
        if callable(value) and name == "attach: at":  # a predicate, whose errors are its own
            continue
        if (
            "size" in name and isinstance(value, int) and value > 64
        ):  # images that large are allowed
            continue
        words = f"case {number}: {name} {value!r:.200}"
        attempt(lambda: CALLS[name](draw, value), words)  # noqa: B023
