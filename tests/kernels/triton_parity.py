"""Parity of the Triton kernels with PyTorch, on a CUDA device or in Triton's interpreter.

Not collected by its name: `test_triton.py` runs it in an interpreter of its own, because Triton
decides at its first import whether it interprets; and takes over its tests for a CUDA device.
"""

import os

import pytest
import torch
from parity import assert_parity
from torch.testing import assert_close

from spem.kernels.triton import layout as triton_layout
from spem.kernels.triton import pool as triton_pool
from spem.kernels.triton.backward import input_gradient, sums
from spem.kernels.triton.pool import pool
from spem.kernels.triton.recalibrate import recalibrate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (2, 3, 7, 7),
    (1, 64, 7, 7),
    (2, 17, 13, 17),
    (3, 16, 4, 8),
    (2, 32, 8, 8),
    (0, 3, 2, 2),
]
# Enough positions and few enough maps that each is split over several programs; the last split
# of the first shape is short, the last tile of the second is not full.
SPLIT_SHAPES = [(1, 2, 172, 196), (1, 3, 183, 201)]
FORMATS = ["contiguous", "channels_last"]
# Brought to one of the two before any kernel sees them: one shape shows it.
GAPPED = [((2, 3, 7, 7), layout) for layout in ("sliced", "sliced_channels_last", "transposed")]
CASES = [(shape, layout) for shape in SHAPES for layout in FORMATS] + GAPPED
# In `make test` float32, and bfloat16 in `test_the_whole_segment_equals_autograd`.
_OTHERS = (torch.bfloat16, torch.float16, torch.float64)
DTYPES = [torch.float32, *(pytest.param(t, marks=pytest.mark.hard) for t in _OTHERS)]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Fill what the kernels shall write with NaN: an element that they leave out shows."""

    def poisoned(allocate):
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**20))

        return call

    for name in ("empty", "empty_map"):
        monkeypatch.setattr(triton_layout, name, poisoned(getattr(triton_layout, name)))


def maps(shape, layout="contiguous", dtype=torch.float32, ties=False):
    n, c, h, w = shape
    if layout.startswith("sliced"):
        shape = (n, 2 * c, h + 1, w + 2)
    elif layout == "transposed":
        shape = (n, c, w, h)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.round() if ties else x).to(DEVICE, dtype)
    if layout.endswith("channels_last"):
        x = x.to(memory_format=torch.channels_last)
    if layout.startswith("sliced"):
        return x[:, ::2, 1:, 2:]
    return x.transpose(2, 3) if layout == "transposed" else x


def values(shape, dtype=torch.float32):
    return torch.randn(shape[:2], dtype=torch.float64).to(DEVICE, wide(dtype))


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def spread(value):
    """(N, C) -> (N, C, 1, 1)."""
    return value[:, :, None, None]


def check(actual, naive, truth, what):
    if actual.dtype == torch.float64:
        # Nothing is wider than this: the rule cannot judge it.
        scale = max(1, truth.abs().amax().item()) if truth.numel() else 1
        assert_close(actual, truth, rtol=0, atol=1e-13 * scale, msg=what)
        return
    # The interpreter cuts float32 to bfloat16 off where a device rounds: one ulp more.
    ulps = 5 if INTERPRETED and actual.dtype == torch.bfloat16 else 4
    assert_parity(actual, naive, truth, what, ulps)


def first_positions(x, extremum):
    flat = x.flatten(2)
    held = (flat == spread(extremum)[..., 0]) | flat.isnan()
    return torch.where(held, torch.arange(flat.shape[-1], device=x.device), flat.shape[-1]).amin(-1)


def check_moments(x):
    moments, wider, truth = pool(x, True), x.to(wide(x.dtype)), x.double()
    mean = truth.mean((2, 3))
    check(moments.mean, wider.mean((2, 3)), mean, "mean")
    naive = (wider - wider.mean((2, 3), keepdim=True)).square().mean((2, 3))
    check(moments.var, naive, (truth - spread(mean)).square().mean((2, 3)), "var")
    if x.numel():
        assert torch.equal(moments.max, wider.amax((2, 3)))
        assert torch.equal(moments.min, wider.amin((2, 3)))
        assert torch.equal(moments.argmax, first_positions(wider, moments.max))
        assert torch.equal(moments.argmin, first_positions(wider, moments.min))
    short = pool(x, False)
    assert short[2:] == (None,) * 4
    check(short.mean, wider.mean((2, 3)), mean, "mean alone")
    check(short.var, naive, (truth - spread(mean)).square().mean((2, 3)), "var alone")
    for value in moments:
        assert value.shape == x.shape[:2]
        assert value.is_contiguous()


@pytest.mark.parametrize(("shape", "layout"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pool(shape, layout, dtype):
    check_moments(maps(shape, layout, dtype))


@pytest.mark.parametrize("shape", SPLIT_SHAPES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_pool_of_maps_that_several_programs_share(shape, layout, dtype):
    x = maps(shape, layout, dtype, ties=True)
    assert triton_pool._plan(triton_layout.layout_of(x), x.element_size()).splits > 1
    check_moments(x)


@pytest.mark.parametrize("layout", [*FORMATS, "sliced"])
def test_pool_of_ties_finds_the_first_position(layout):
    check_moments(maps((2, 5, 13, 17), layout, torch.bfloat16, ties=True))
    mixed_zeros = maps((2, 5, 13, 17), layout).sign().clamp(max=0) * 0.0
    check_moments(mixed_zeros)
    infinite = maps((1, 3, 5, 5), layout)
    infinite[0, 0] = float("inf")
    infinite[0, 1] = -float("inf")
    moments = pool(infinite, True)
    for at in (moments.argmax, moments.argmin):
        assert at[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(1, 2, 7, 9), (1, 2, 172, 196)])
def test_equal_values_have_no_variance(shape, layout):
    moments = pool(torch.full_like(maps(shape, layout), 1000.1), True)
    assert (moments.var <= (1000.1 * 2**-22) ** 2).all()
    assert_close(moments.mean, torch.full_like(moments.mean, 1000.1))
    assert torch.equal(moments.argmax, torch.zeros_like(moments.argmax))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(1, 4, 7, 9), (1, 4, 172, 196)])
def test_variance_keeps_its_digits_under_a_large_mean(shape, layout):
    x = maps(shape, layout) + 1000
    truth = x.double().var((2, 3), correction=0)
    assert ((pool(x, True).var - truth).abs() / truth).max() < 1e-5


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(1, 4, 7, 9), (1, 4, 172, 196)])
def test_nan_is_handed_on(shape, layout):
    x = maps(shape, layout)
    x[0, 1, 3, 2] = x[0, 1, 5, 5] = x[0, 2, -1, -1] = -float("nan")
    x[0, 3] = float("nan")
    moments = pool(x, True)
    where = torch.tensor([[False, True, True, True]], device=DEVICE)
    for value in moments[:4]:
        assert torch.equal(value.isnan(), where)
    for at in (moments.argmax, moments.argmin):
        assert ((at >= 0) & (at < shape[2] * shape[3])).all()
    out = recalibrate(x, *(torch.ones(1, 4, device=DEVICE),) * 2, None, relu=True)
    assert torch.equal(out.isnan(), x.isnan())


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
        out = recalibrate(x, a, b if shifted else None, residual if added else None, relu)
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
        arguments = {name: value[name] for name in used if name != "d"}
        dx = input_gradient(
            d if "d" in used else None,
            x,
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
    out = recalibrate(x, a.detach(), b.detach(), residual, True)
    d, (sum_dx, sum_d) = sums(cotangent, out, x)
    dmean, dvar, dmax, dmin, dgamma, dbeta = torch.autograd.grad((a, b), inputs, (sum_dx, sum_d))
    dx = input_gradient(
        d, x, a.detach(), moments.mean, dmean, dvar, moments.argmax, dmax, moments.argmin, dmin
    )
    return out, dx, dgamma, dbeta, d


@pytest.mark.parametrize("layout", [*FORMATS, "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (2, 16, 4, 8), (1, 2, 172, 196)])
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


@pytest.mark.parametrize("layout", FORMATS)
def test_results_repeat(layout):
    x = maps((1, 3, 183, 201), layout)
    for call in (lambda: pool(x, True), lambda: sums(x, x, x)):
        for first, second in zip(call(), call(), strict=True):
            assert torch.equal(first, second)
