"""Gates with random parameters at the places where a network holds them, for generic tests."""

import pytest
import torch
from torch import nn

from spem.gates import GATES, Attention, create_gate
from spem.gates.attention import NoIdentityError
from spem.norm import GatedBatchNorm2d

# One of each family: of pooled values, with layers, with a norm, of the feature map, sharing,
# that adds, of rows and columns, without parameters.
FAMILIES = ("spem", "se", "srm", "cbam", "dianet", "gc", "simam")
# Values to parametrize: in `make test` those, in `make test-gates` the others.
EACH_GATE = [
    *FAMILIES,
    *(pytest.param(n, marks=pytest.mark.gates) for n in sorted(GATES) if n not in FAMILIES),
]
# For narrow networks.
OPTIONS = {"srp": {"rho": 0.5}, "sge": {"groups": 4}}
OPTIONS |= {name: {"reduction": 4} for name in ("cbam", "spa", "hpda", "fcanet")}
OPTIONS |= {"lct": {"groups": 4}, "sa": {"groups": 2}, "ema": {"factor": 4}}
OPTIONS |= {name: {"reduction": 4} for name in ("gc", "bam")}
OPTIONS["fcanet"] |= {"frequencies": "top4"}


def _starts_at_identity(name):
    try:
        create_gate(name, 64, init="identity", **OPTIONS.get(name, {}))
    except NoIdentityError:
        return False
    except ValueError:  # has no such option
        return True
    return True


# `attach` asks for that start unless the options name another.
WITHOUT_IDENTITY = tuple(name for name in GATES if not _starts_at_identity(name))
OPTIONS |= {name: {**OPTIONS.get(name, {}), "init": "paper"} for name in WITHOUT_IDENTITY}


def randomise(module, seed=0):
    """Draw the parameters of all gates of a module, whose published start is often constant."""
    generator = torch.Generator().manual_seed(seed)
    for gate in module.modules():
        if isinstance(gate, Attention):
            for parameter in gate.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(0.3 * noise.to(parameter.dtype))
    return module


def randomise_norms(model):
    """Draw weights, biases and statistics of all norms, some of which start at 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model


class _Block(nn.Module):
    """A norm with its gate, a residual addition and a ReLU."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        """Return relu(norm(x) + x)."""
        return self.norm(x, x, True)


def build_gated(name, place, channels):
    """Return a module with a randomised gate: "alone", behind a "norm", or in a "block"."""
    gate = create_gate(name, channels, **OPTIONS.get(name, {}))
    if place == "alone":
        return randomise(gate)
    norm = randomise(GatedBatchNorm2d(channels, gate=gate))
    generator = torch.Generator().manual_seed(5)
    for value in (*norm.parameters(recurse=False), norm.get_buffer("running_mean")):
        value.data.add_(0.3 * torch.randn(channels, generator=generator))
    return _Block(norm) if place == "block" else norm
