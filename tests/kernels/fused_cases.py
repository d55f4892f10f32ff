"""Modules with drawn parameters, run by the compiled passes and in eager mode."""

import copy

import torch
from torch import nn

from spem import kernels

FORMATS = [torch.contiguous_format, torch.channels_last]


def drawn(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def draw(shape, number):
    return [torch.randn(shape, dtype=torch.float64) for _ in range(number)]


def run(module, backend, x, residual, relu, weight):
    """Return the output, the gradients and the buffers of a module."""
    x, residual = (
        None if t is None else t.detach().clone(memory_format=torch.preserve_format)
        for t in (x, residual)
    )
    for t in (x, residual):
        if t is not None:
            t.requires_grad_()
    module.zero_grad()
    with kernels.use(backend):
        out = module(x, residual, relu)
        (out * weight).sum().backward()
    grads = {f"d{name}": p.grad for name, p in module.named_parameters()}
    grads |= {"dx": x.grad} | ({} if residual is None else {"dresidual": residual.grad})
    return {"out": out.detach(), **grads, **dict(module.named_buffers())}


def compare(module, x, residual=None, relu=True):
    weight = torch.randn_like(x)
    expected = run(copy.deepcopy(module), "eager", x, residual, relu, weight)
    actual = run(module, "compiled", x, residual, relu, weight)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
            continue
        torch.testing.assert_close(
            actual[name], value, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
    for layout in FORMATS:
        same = (result["out"].is_contiguous(memory_format=layout) for result in (actual, expected))
        assert len(set(same)) == 1
