"""Networks that their user compiles whole: which passes they take, and that nothing changes."""

import copy

import pytest
import torch
from torch import nn

from spem import create_gate
from spem.kernels.cpu import custom_ops, passes
from spem.norm import GatedBatchNorm2d

PASSES = ("run_pool", "run_recalibrate", "run_sums", "run_input_gradient")


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


@pytest.fixture
def taken(monkeypatch):
    """How often each pass of the CPU was called."""
    calls = dict.fromkeys(PASSES, 0)

    def counted(name):
        original = getattr(passes.COMPILED, name)

        def call(*args, **options):
            calls[name] += 1
            return original(*args, **options)

        return call

    for name in PASSES:
        monkeypatch.setattr(passes.COMPILED, name, counted(name))
    return calls


class Block(nn.Module):
    """A convolution, a gated norm with a shortcut and a ReLU, and one without either."""

    def __init__(self, gate):
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.first = GatedBatchNorm2d(5, gate=create_gate(gate, 5))
        self.second = GatedBatchNorm2d(5, gate=create_gate(gate, 5))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += torch.linspace(-0.4, 0.5, parameter.numel()).view_as(parameter)

    def forward(self, x):
        return self.second(self.first(self.conv(x), residual=x, relu=True))


def results(model, x):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    found |= {name: p.grad for name, p in model.named_parameters()}
    return found | dict(model.named_buffers())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("gate", ["spem", "se", "gct"])
def test_training_in_nhwc_takes_the_passes_and_equals_eager(gate, channels_last, taken):
    if reason := passes.why_not():
        pytest.skip(reason)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = Block(gate).double().to(memory_format=layout)
    x = torch.randn(3, 5, 4, 6, dtype=torch.double).to(memory_format=layout)
    expected = results(copy.deepcopy(model), x)
    assert not any(taken.values())
    found = results(torch.compile(model, fullgraph=True), x)
    assert taken == dict.fromkeys(PASSES, 2 if channels_last else 0)
    for name, value in expected.items():
        actual = found[name] if name in found else found[f"_orig_mod.{name}"]
        torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["inference", "export", "no compiler"])
def test_all_else_takes_the_reference(how, taken, monkeypatch):
    model = Block("spem").to(memory_format=torch.channels_last)
    x = torch.randn(3, 5, 4, 6).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(model)(x)
    if how == "inference":
        with torch.no_grad():
            found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    elif how == "export":
        found = torch.export.export(model, (x,)).module()(x)
    else:
        monkeypatch.setattr(custom_ops, "why_not", lambda: "no compiler")
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert not any(taken.values())
    torch.testing.assert_close(found, expected)


def test_the_operators_are_sound():
    if reason := passes.why_not():
        pytest.skip(reason)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double)
    *stand_ins, values = custom_ops._pool(x, True, True)
    scale, shift = torch.randn(2, 2, 3, dtype=torch.double).unbind()
    out = custom_ops._recalibrate(x, *stand_ins, scale, shift, None, True)
    grads = torch.randn_like(values)
    for operator, given in (
        (custom_ops._pool, (x, True, True)),
        (custom_ops._pool, (x, False, False)),
        (custom_ops._pool_backward, (x, values, grads, out, scale, True, True)),
        (custom_ops._recalibrate, (x, *stand_ins, scale, shift, None, True)),
        (custom_ops._sums, (out, None, x)),
        (custom_ops._sums, (out, out, x)),
    ):
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, given, test_utils=tests)
