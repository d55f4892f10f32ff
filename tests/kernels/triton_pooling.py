"""Parity of the pooling kernels of Triton with PyTorch; see `triton_maps.py`."""

import pytest
import torch
from torch.testing import assert_close
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
    wide,
)

from spem.kernels.triton import layout as triton_layout
from spem.kernels.triton import pool as triton_pool
from spem.kernels.triton.pool import pool
from spem.kernels.triton.recalibrate import recalibrate

# Its interpreter takes seconds for a large map: one test of them is in `make test`.
LARGE = pytest.param((1, 4, 172, 196), marks=pytest.mark.hard)


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
@pytest.mark.parametrize("shape", [(1, 2, 7, 9), LARGE])
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
@pytest.mark.parametrize("shape", [(1, 4, 7, 9), LARGE])
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
    for number in (2, 6):
        out = recalibrate(x, (torch.ones(1, 4, device=DEVICE),) * number, None, relu=True)
        assert torch.equal(out.isnan(), x.isnan())
