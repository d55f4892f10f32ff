"""PyTorch's quantization of networks with gates: works, or names what to write."""

import copy

import pytest
import torch
import torch.ao.quantization as quantization
from gatings import EACH_GATE, OPTIONS
from torch import nn

import spem

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.dequant(self.bn(self.conv(self.quant(x)))).mean((2, 3)))


class Dequantized(nn.Module):
    """What the refusal tells to write: a gated norm in floating point between quantized layers."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.quant = norm, quantization.QuantStub()
        norm.qconfig = None

    def forward(self, x):
        return self.quant(self.norm(x.dequantize()))


def gated(name):
    """A network with a gate away from its start, in evaluation."""
    model = Net().eval()
    spem.attach(model, name, at="bn", **OPTIONS.get(name, {}))
    for parameter in model.bn.gate.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


def quantize(model):
    """Static quantization in eager mode."""
    model = copy.deepcopy(model)
    model.qconfig = quantization.get_default_qconfig("fbgemm")
    model.fc.qconfig = None
    quantization.prepare(model, inplace=True)
    model(X)
    return quantization.convert(model, inplace=True)


@pytest.mark.parametrize("name", EACH_GATE)
@torch.no_grad()
def test_dynamic_quantization_keeps_the_gate(name):
    model = gated(name)
    quantized = quantization.quantize_dynamic(model, {nn.Linear})
    assert isinstance(quantized.bn.gate, spem.Attention)
    assert type(quantized.fc) is not nn.Linear
    # Those of gates are layers of their own, which stay as they are: the head errs by some 0.5 %.
    error = quantized(X) - model(X)
    assert error.norm() < 0.03 * model(X).norm()


@pytest.mark.parametrize("name", EACH_GATE)
@torch.no_grad()
def test_static_quantization_names_what_to_write(name):
    model = gated(name)
    expected = model(X)
    with pytest.raises(ValueError, match=r"give x.dequantize\(\), and set `qconfig = None`"):
        quantize(model)(X)
    model.bn = Dequantized(model.bn)
    vars(model)["_attached_gates"]["names"] = ["bn.norm"]
    torch.testing.assert_close(quantize(model)(X), expected, atol=0.05, rtol=0)


def test_training_with_simulated_quantization_reaches_the_gate():
    model = gated("se").train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(model, inplace=True)
    model(X).square().mean().backward()
    assert model.bn.gate.fc1.weight.grad.abs().sum() > 0


def test_fusing_a_convolution_with_a_gated_norm_is_refused():
    with pytest.raises(AssertionError, match=r"did not find fuser method .*GatedBatchNorm2d"):
        quantization.fuse_modules(gated("se"), ["conv", "bn"])
    model = gated("se")
    model.conv, model.bn = nn.utils.fuse_conv_bn_eval(model.conv, model.bn), nn.Identity()
    with pytest.raises(RuntimeError, match="the gate of 'bn' is lost"):
        model(X)
