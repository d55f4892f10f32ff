"""Whole networks train as their twins of separate steps."""

import copy

import pytest
import torch
from torch import nn

import spem
from spem import create_model
from spem.norm import GatedBatchNorm2d


def unfuse(model):
    """Replace every GatedBatchNorm2d by BatchNorm2d, gate, addition and ReLU as separate steps."""

    class Unfused(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = nn.BatchNorm2d(norm.num_features).double()
            own = norm.state_dict()
            self.norm.load_state_dict({k: v for k, v in own.items() if "gate." not in k})
            self.gate = norm.gate

        def forward(self, x, residual=None, relu=False, source=None):
            out = self.norm(x)
            out = out if self.gate is None else self.gate(out)
            out = out if residual is None else out + residual
            return torch.relu(out) if relu else out

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GatedBatchNorm2d):
                setattr(module, name, Unfused(child))
    return model


@pytest.mark.parametrize("name", ["resnet8", "resnet11", "preresnet11"])
def test_a_network_trains_as_its_unfused_twin(name):
    model = create_model(name, "spem").double()
    twin = unfuse(copy.deepcopy(model))
    histories = []
    for network in (model, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        history = []
        for _ in range(30):
            x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
            loss = nn.functional.cross_entropy(network(x), torch.randint(10, (4,)))
            optimizer.zero_grad()
            (loss + spem.auxiliary_loss(network)).backward()
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    torch.testing.assert_close(*histories, rtol=1e-7, atol=1e-7)
