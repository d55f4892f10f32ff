"""Parity of Triton's recalibration and backward kernels with PyTorch; see `triton_maps.py`."""

import pytest
import torch
from triton_maps import (
    CASES,
    DEVICE,
    DTYPES,
    FORMATS,
    SPLIT_SHAPES,
    _poisoned_outputs,  # noqa: F401 (pytest finds it in this module)
    check,
    maps,
    spread,
    values,
    wide,
)

from spem.kernels.triton import layout as triton_layout
from spem.kernels.triton.backward import input_gradient, sums
from spem.kernels.triton.pool import pool
from spem.kernels.triton.recalibrate import recalibrate

# Seconds in the interpreter, for each of five kernels.
LARGE = pytest.param((1, 2, 172, 196), marks=pytest.mark.hard)


def kept(out, x):
    """Whether out is dense and in the memory format to which x is nearest."""
    dense = triton_layout.dense(x)
    return out.shape == x.shape and out.dtype == x.dtype and out.stride() == dense.stride()


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_recalibrate(shape, layout, dtype):
    x, residual = maps(shape, layout, dtype), maps(shape, "channels_last", dtype)
    a, b = values(shape, dtype), values(shape, dtype)

    def definition(dtype, shifted, added, relu):
        out = spread(a).to(dtype) * x.to(dtype)
        out = out + spread(b).to(dtype) if shifted else out
        out = out + residual.to(dtype) if added else out
        return out.relu() if relu else out

    for options in [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)]:
        shifted, added, relu = map(bool, options)
        shift = b if shifted else None
        out = recalibrate(x, (a, shift), residual if added else None, relu)
        assert kept(out, x)
        expected = (definition(kind, *options) for kind in (dtype, torch.float64))
        check(out, *expected, str(options))


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums(shape, layout, dtype):
    check_sums(maps(shape, layout, dtype), dtype)


def check_sums(x, dtype):
    grad, out = maps(x.shape, "transposed", dtype), torch.randn_like(x).relu()
    for masked in (True, False):
        d, (sum_dx, sum_d) = sums(grad, out if masked else None, x)
        expected = torch.where(out > 0, grad, 0) if masked else grad
        assert torch.equal(d, expected)
        if masked:
            assert kept(d, x)
        wider, naive_x = expected.to(wide(dtype)), x.to(wide(dtype))
        check(sum_d, wider.sum((2, 3)), expected.double().sum((2, 3)), "sum_d")
        truth = (expected.double() * x.double()).sum((2, 3))
        check(sum_dx, (wider * naive_x).sum((2, 3)), truth, "sum_dx")


@pytest.mark.parametrize("shape", SPLIT_SHAPES)
@pytest.mark.parametrize("layout", FORMATS)
def test_sums_of_maps_that_several_programs_share(shape, layout):
    check_sums(maps(shape, layout), torch.float32)


TERMS = ["d", "scale", "dmean", "dvar", "dmax", "dmin"]


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_input_gradient(shape, layout, dtype):
    # The terms one at a time, then all.
    x, d = maps(shape, layout, dtype), maps(shape, layout, dtype)
    value = {name: values(shape, dtype) for name in ("scale", "dmean", "dvar", "dmax", "dmin")}
    moments = pool(x, True)

    def definition(dtype, used):
        full = torch.zeros(shape, dtype=dtype, device=DEVICE)
        given = {name: spread(value[name]).to(dtype) for name in used if name != "d"}
        length = shape[2] * shape[3]
        if "d" in used:
            full = full + d.to(dtype) * given.get("scale", 1)
        if "dmean" in used:
            full = full + given["dmean"] / length
        if "dvar" in used:
            full = full + 2 * given["dvar"] / length * (
                x.to(dtype) - spread(moments.mean).to(dtype)
            )
        for name, at in (("dmax", moments.argmax), ("dmin", moments.argmin)):
            if name in used:
                here = torch.zeros_like(full).flatten(2)
                here.scatter_(2, spread(at)[..., 0].long(), given[name][..., 0])
                full = full + here.reshape(shape)
        return full

    for used in [["d"], ["d", "scale"], *([term] for term in TERMS[2:]), TERMS]:
        arguments = {name: value[name] for name in used if name not in ("d", "scale")}
        dx = input_gradient(
            d if "d" in used else None,
            x,
            (value["scale"] if "scale" in used else None, None),
            mean=moments.mean,
            argmax=moments.argmax,
            argmin=moments.argmin,
            **arguments,
        )
        assert kept(dx, x)
        check(dx, *(definition(kind, used) for kind in (dtype, torch.float64)), str(used))


def head(moments, gamma, beta):
    """A batch norm and a gate that reads all four statistics, as scale and shift of x, (N, C)."""
    mean, var, largest, smallest = moments
    centre = mean.mean(0)
    sigma = (var.mean(0) + (mean - centre).square().mean(0) + 1e-5).rsqrt()
    s, t = gamma * sigma, beta - gamma * sigma * centre
    up = s >= 0
    high, low = torch.where(up, largest, smallest), torch.where(up, smallest, largest)
    z = 0.5 * (s * mean + t) + 0.2 * (s * high + t) - 0.3 * (s * low + t) + 0.1 * s * s * var
    gate = torch.sigmoid(z)
    return gate * s, gate * t


def segment_by_autograd(x, gamma, beta, residual, cotangent, dtype):
    """The segment as separate operations of PyTorch, all at one dtype."""
    x, gamma, beta, residual = (
        value.detach().to(dtype).requires_grad_() for value in (x, gamma, beta, residual)
    )
    flat = x.flatten(2)
    var = (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3))
    a, b = head((x.mean((2, 3)), var, flat.max(-1)[0], flat.min(-1)[0]), gamma, beta)
    out = (spread(a) * x + spread(b) + residual).relu()
    return out, *torch.autograd.grad(out, (x, gamma, beta, residual), cotangent.to(dtype))


def segment_by_kernels(x, gamma, beta, residual, cotangent):
    moments = pool(x, True)
    inputs = [value.detach().requires_grad_() for value in (*moments[:4], gamma, beta)]
    a, b = head(inputs[:4], *inputs[4:])
    out = recalibrate(x, (a.detach(), b.detach()), residual, True)
    d, (sum_dx, sum_d) = sums(cotangent, out, x)
    dmean, dvar, dmax, dmin, dgamma, dbeta = torch.autograd.grad((a, b), inputs, (sum_dx, sum_d))
    others = moments.mean, dmean, dvar, moments.argmax, dmax, moments.argmin, dmin
    dx = input_gradient(d, x, (a.detach(), None), *others)
    return out, dx, dgamma, dbeta, d


@pytest.mark.parametrize("layout", [*FORMATS, "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (2, 16, 4, 8), LARGE])
def test_the_whole_segment_equals_autograd(shape, layout, dtype):
    x, residual, cotangent = (maps(shape, layout, dtype) for _ in range(3))
    gamma, beta = values(shape)[0], values(shape)[0]
    inputs = (x, gamma, beta, residual, cotangent)
    actual = segment_by_kernels(*inputs)
    naive = segment_by_autograd(*inputs, dtype)
    truth = segment_by_autograd(*inputs, torch.float64)
    # At the output's edge of zero two precisions may disagree on the ReLU: not this test's matter.
    names = ("out", "dx", "dgamma", "dbeta", "dresidual")
    for name, *three in zip(names, actual, naive, truth, strict=True):
        check(*three, name)


def weighed(x, coefficients):
    """A recalibration with a sigmoid by separate operations of PyTorch."""
    scale, shift, slope, offset, *more = (t[..., None, None] for t in coefficients)
    logits = slope * x + offset + (more[0] * (x - more[1]).square() if more else 0)
    return (scale * x + shift) * logits.sigmoid()


def weighed_by_autograd(x, coefficients, grad, dtype):
    """The result, its gradient of x, and those of the coefficients for each image."""
    x = x.detach().to(dtype).requires_grad_()
    expanded = [t.expand(x.shape[:2]).to(dtype).requires_grad_() for t in coefficients]
    out = weighed(x, expanded)
    dx, *found = torch.autograd.grad(out, [x, *expanded], grad.to(dtype))
    return out.detach(), dx, torch.stack(found)


@pytest.mark.parametrize(("shape", "layout"), [*CASES[:-3:2], *CASES[-3:]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoids(shape, layout, dtype):
    x, grad = maps(shape, layout, dtype), maps(shape, "transposed", dtype)
    for images, number in ((True, 4), (True, 6), (False, 6)):  # of each image, or of all
        given = shape if images else (1, *shape[1:])
        coefficients = tuple(values(given, dtype) for _ in range(number))
        coefficients = coefficients if images else tuple(t[0] for t in coefficients)
        actual = recalibrate(x, coefficients, None, False)
        _, gradients = sums(grad, None, x, coefficients)
        dx = input_gradient(grad, x, coefficients)
        assert kept(actual, x)
        assert kept(dx, x)
        naive = weighed_by_autograd(x, coefficients, grad, wide(dtype))
        truth = weighed_by_autograd(x, coefficients, grad, torch.float64)
        for found in zip((actual, dx, gradients), naive, truth, strict=True):
            check(*found, f"each image {images}")


@pytest.mark.parametrize("layout", FORMATS)
def test_sums_of_sigmoids_that_several_programs_share(layout):
    x, grad = (maps((1, 2, 172, 196), layout) for _ in range(2))
    coefficients = tuple(values((1, 2)) for _ in range(6))
    out = recalibrate(x, coefficients, None, True)
    d, gradients = sums(grad, out, x, coefficients)
    assert torch.equal(d, torch.where(out > 0, grad, 0))
    naive, truth = (weighed_by_autograd(x, coefficients, d, t)[2] for t in (x.dtype, torch.float64))
    check(gradients, naive, truth, "sums")


@pytest.mark.parametrize("layout", FORMATS)
def test_results_repeat(layout):
    x = maps((1, 2, 172, 196), layout)
    for call in (lambda: pool(x, True), lambda: sums(x, x, x)):
        for first, second in zip(call(), call(), strict=True):
            assert torch.equal(first, second)
