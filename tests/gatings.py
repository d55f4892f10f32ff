"""Gates with random parameters at the places where a network holds them, for generic tests."""

import pytest
import torch
from torch import nn

from spem.gates import GATES, Attention, create_gate
from spem.norm import GatedBatchNorm2d

# One of each family: what it reads, how it shares, what it returns.
FAMILIES = ("spem", "srm", "iebn", "cbam", "sge", "dianet")
# Options with which a gate can be built for few channels.
_SMALL = {"sge": {"groups": 2}, "fcanet": {"frequencies": "top4"}, "srp": {"rho": 0.4}}


def gates_of_each_family():
    """Return values to parametrize: the names of all gates, those beyond a family's as `gates`."""
    others = [name for name in GATES if name not in FAMILIES]
    return [*FAMILIES, *(pytest.param(name, marks=pytest.mark.gates) for name in others)]


def randomise(module, seed=0):
    """Draw the parameters of all gates of a module, whose published start is often constant."""
    generator = torch.Generator().manual_seed(seed)
    for gate in module.modules():
        if isinstance(gate, Attention):
            for parameter in gate.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(0.3 * noise.to(parameter.dtype))
    return module


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
    gate = create_gate(name, channels, **_SMALL.get(name, {}))
    if place == "alone":
        return randomise(gate)
    norm = randomise(GatedBatchNorm2d(channels, gate=gate))
    generator = torch.Generator().manual_seed(5)
    for value in (*norm.parameters(recurse=False), norm.get_buffer("running_mean")):
        value.data.add_(0.3 * torch.randn(channels, generator=generator))
    return _Block(norm) if place == "block" else norm
