"""Whatever an option is: a gate or network that works, or a sentence that names what is allowed."""

import pytest
import torch
from proof import cases, numbers_of
from torch import nn
from wrong_values import VALUES, attempt

from spem import create_gate, create_model
from spem._messages import shorten
from spem.gates import GATES, gate_options

RIGHT = {"srp": {"rho": 0.5}, "sge": {"groups": 4}}
# Sizes and names that some option or other takes, among values that none takes.
FITTING = ["icme-a", "tmm-b", "channel", "low4", "l1", "code", "squared", "min", 5, 0.25]


@pytest.mark.parametrize("numbers", cases(100_000, 300))
def test_a_gate_works_or_says_what_is_allowed(numbers):
    built = 0
    for number in numbers:
        draw = numbers_of(number)
        name = draw.choice(list(GATES))
        channels = draw.choice(VALUES) if draw.random() < 0.1 else draw.choice((1, 4, 16, 64))
        options = dict(RIGHT.get(name, {})) if draw.random() < 0.9 else {}
        for option in draw.choices(list(gate_options(name)), k=draw.randint(0, 3)):
            options[option] = draw.choice(draw.choice((VALUES, FITTING)))
        by_name = draw.random() < 0.5 or (name == "srp" and "rho" not in options)
        words = f"case {number}: {name} by name: {by_name} {shorten(channels)} {options!r:.300}"
        # Of options that do not fit each other, either may be named.
        names = ["channels", shorten(channels), "source", "pool", *gate_options(name)]
        build = (lambda c, **o: create_gate(name, c, **o)) if by_name else GATES[name]  # noqa: B023
        gate = attempt(lambda: build(channels, **options), words, names)  # noqa: B023
        if gate is None or channels > 64:
            continue
        built += 1
        x = torch.randn(2, channels, 5, 4)
        extra = [torch.randn(2, gate.source_channels, 5, 4)] if gate.needs_source else []
        assert gate(x, *extra).shape == x.shape, words
    assert built


MODELS = ["resnet8", "resnet20", "vgg11", "densenet10", "attention56", "preresnet20", "vgg12"]
MODELS += ["resnet020", "resnet7", "resnet99999998", "attention-1", "", "x\x1b[1m", "RESNET20"]
KEYS = ["gate", "num_classes", "in_channels", "block", "placement", "mask", "pretrained", "alpha"]


@pytest.mark.parametrize("numbers", cases(25_000, 100))
def test_a_network_is_built_or_says_what_is_allowed(numbers):
    for number in numbers:
        draw = numbers_of(number)
        name = draw.choice(VALUES) if draw.random() < 0.1 else draw.choice(MODELS)
        options = {key: draw.choice(VALUES) for key in draw.sample(KEYS, draw.choice((1, 1, 2)))}
        words = f"case {number}: create_model({name!r:.50}, {options!r:.300})"
        # Of a gate with an option that it needs, the option is named.
        names = ["model", "depth", shorten(name), *KEYS, "option", "channels"]
        model = attempt(lambda: create_model(name, **options), words, names)  # noqa: B023
        assert model is None or isinstance(model, nn.Module)
