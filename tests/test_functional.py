"""pool and recalibrate: values, ties, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import assert_parity
from torch.autograd import gradcheck, gradgradcheck

from spem import kernels
from spem.functional import STATISTICS, Pooled, Sigmoid, pool, recalibrate
from spem.gates import create_gate

IMPLEMENTATIONS = ["reference", "eager", "compiled"]
ONES = torch.ones(1, 2)
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (2, 17, 7, 7), (3, 1, 13, 17), (0, 3, 2, 2)]


def maps(shape, channels_last=False, ties=False, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype)
    x = x.round() if ties else x
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with kernels.use(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_pool_equals_the_definition(implementation, shape, channels_last):
    x = maps(shape, channels_last)
    flat = x.flatten(2)
    pooled = pool(x)
    torch.testing.assert_close(pooled.mean, flat.mean(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        pooled.var, (flat - flat.mean(-1, keepdim=True)).square().mean(-1), atol=1e-12, rtol=0
    )
    assert torch.equal(pooled.max, flat.amax(-1))
    assert torch.equal(pooled.min, flat.amin(-1))
    assert pooled.count == shape[2] * shape[3]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["max", "min"])
def test_gradient_of_an_extremum_goes_to_its_first_position(implementation, name, channels_last):
    x = torch.zeros(1, 2, 3, 4)
    x[0, 0, 1, 2] = x[0, 0, 2, 1] = 5 if name == "max" else -5
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x.requires_grad_()
    getattr(pool(x), name).sum().backward()
    expected = torch.zeros(1, 2, 3, 4)
    expected[0, 0, 1, 2] = expected[0, 1, 0, 0] = 1
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_in_transposed_and_sliced_maps_are_found_in_row_major_order(implementation, name):
    base = torch.randint(0, 2, (2, 6, 8, 5)).double()
    for view in (base.transpose(2, 3), base[:, 1::2, ::2], base[..., 1:]):
        x = view.detach().requires_grad_()
        getattr(pool(x), name).sum().backward()
        flat = view.reshape(*view.shape[:2], -1)
        first = (flat == getattr(flat, f"a{name}")(-1, keepdim=True)).double().argmax(-1)
        expected = torch.nn.functional.one_hot(first, flat.shape[-1]).reshape(view.shape)
        assert torch.equal(x.grad, expected.double())


@pytest.mark.parametrize("name", STATISTICS)
def test_pool_gradcheck(implementation, name):
    x = maps((2, 3, 3, 4)).requires_grad_()
    assert gradcheck(lambda x: getattr(pool(x), name), x)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_recalibrate_gradcheck(implementation, relu, shifted, added):
    x, residual = maps((2, 3, 3, 4)).requires_grad_(), maps((2, 3, 3, 4)).requires_grad_()
    scale = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def function(x, scale, shift, residual):
        return recalibrate(x, scale, shift if shifted else None, residual if added else None, relu)

    out = function(x, scale, shift, residual)
    expected = scale[..., None, None] * x
    expected = expected + shift[..., None, None] if shifted else expected
    expected = expected + residual if added else expected
    torch.testing.assert_close(out, expected.relu() if relu else expected, atol=1e-12, rtol=0)
    assert gradcheck(function, (x, scale, shift, residual))


def weighed(x, scale, shift, slope, offset, square, centre):
    """A recalibration with a sigmoid by its definition."""
    logits = square * (x - centre).square() + slope * x + offset
    return (scale * x + shift) * logits.sigmoid()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (1, 17, 1, 1)])
def test_recalibrate_by_a_sigmoid_gradcheck(implementation, shape, channels_last):
    x, residual = (maps(shape, channels_last).requires_grad_() for _ in range(2))
    given = [torch.randn(shape[:2], dtype=torch.float64, requires_grad=True) for _ in range(6)]

    def function(x, residual, scale, shift, *four):
        return recalibrate(x, scale, shift, residual, True, Sigmoid(*four))

    expected = (weighed(x, *(t[..., None, None] for t in given)) + residual).relu()
    torch.testing.assert_close(function(x, residual, *given), expected, atol=1e-12, rtol=0)
    assert gradcheck(function, (x, residual, *given))
    assert gradgradcheck(function, (x, residual, *given))


def test_the_parts_of_a_sigmoid_may_be_left_out(implementation):
    x, scale = maps((2, 3, 3, 4)), torch.randn(2, 3, dtype=torch.float64)
    parts = [torch.randn(2, 3, dtype=torch.float64) for _ in range(4)]
    zero = torch.zeros_like(scale)
    for left_out in ((2, 3), (0,), (0, 2, 3)):
        given = [None if i in left_out else t for i, t in enumerate(parts)]
        out = recalibrate(x, scale, sigmoid=Sigmoid(*given))
        filled = (scale, zero, *(zero if t is None else t for t in given))
        expected = weighed(x, *(t[..., None, None] for t in filled))
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sigmoid_saturates_and_hands_nan_on(implementation, dtype):
    x = torch.tensor([-1e30, -1e3, -90, 0, 90, 1e3, 1e30, float("nan")], dtype=dtype).view(
        1, 1, 1, 8
    )
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    out = recalibrate(x, zero, one, sigmoid=Sigmoid(one, zero)).flatten()
    torch.testing.assert_close(out, x.flatten().sigmoid() + 0 * x.flatten(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_by_the_tolerance_rule(implementation, dtype):
    x, residual = maps((4, 8, 13, 17), dtype=dtype), maps((4, 8, 13, 17), dtype=dtype)
    scale, shift = torch.randn(4, 8), torch.randn(4, 8)

    def naive(dtype):
        a, b = scale.to(dtype)[..., None, None], shift.to(dtype)[..., None, None]
        return (a * x.to(dtype) + b + residual.to(dtype)).relu()

    out = recalibrate(x, scale, shift, residual, relu=True)
    assert out.dtype == dtype
    assert_parity(out, naive(dtype), naive(torch.float64))
    pooled = pool(x)
    for name in STATISTICS:
        assert getattr(pooled, name).dtype == torch.float32
    assert_parity(pooled.mean, x.mean((2, 3)), x.double().mean((2, 3)))
    truth = x.double().var((2, 3), correction=0)
    assert_parity(pooled.var, x.float().var((2, 3), correction=0), truth)


def test_variance_keeps_its_digits_under_a_large_mean(implementation):
    x = 1000 + torch.randn(2, 3, 32, 32)
    truth = x.double().var((2, 3), correction=0)
    # A raw sum of squares is off by 0.2 here.
    assert ((pool(x).var - truth).abs() / truth).max() < 1e-5


def test_channels_last_is_kept(implementation):
    x = maps((2, 4, 5, 6), channels_last=True)
    out = recalibrate(x, torch.rand(2, 4), torch.rand(2, 4), x, relu=True)
    assert out.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*(st.integers(1, 5) for _ in range(4))), st.booleans(), st.integers(0, 2**31 - 1))
def test_affine_equals_pooling_the_affine_map(shape, ties, seed):
    torch.manual_seed(seed)
    x = maps(shape, ties=ties)
    scale = torch.randn(shape[1], dtype=torch.float64).round(decimals=0)
    shift = torch.randn(shape[1], dtype=torch.float64)
    z = scale[:, None, None] * x + shift[:, None, None]
    for actual, expected in zip(pool(x).affine(scale, shift), pool(z), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_only_what_is_asked_for_is_pooled():
    assert pool(torch.ones(1, 2, 3, 3), ["mean"])[1:] == (None, None, None, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pool(torch.ones(2, 3)), r"x is \(2, 3\).*must be \(N, C, H, W\)"),
        (lambda: pool(torch.ones(1, 2, 3, 3).long()), "int64.*floating point"),
        (lambda: pool(torch.ones(1, 2, 0, 3)), "no positions"),
        (lambda: pool(torch.ones(1, 2, 3, 3), ["maen"]), "'maen'; known: mean"),
        (lambda: recalibrate(torch.ones(1, 2, 3, 3), torch.ones(1, 3)), r"scale is \(1, 3\)"),
        (
            lambda: recalibrate(
                torch.ones(1, 2, 3, 3), torch.ones(1, 2), residual=torch.ones(1, 2, 1, 1)
            ),
            r"residual is \(1, 2, 1, 1\)",
        ),
        (
            lambda: recalibrate(torch.ones(1, 2, 3, 3), ONES, sigmoid=Sigmoid(None, 1)),
            "offset is 1",
        ),
        (
            lambda: recalibrate(torch.ones(1, 2, 3, 3), ONES, sigmoid=Sigmoid(torch.ones(2), ONES)),
            r"slope is \(2,\)",
        ),
        (
            lambda: recalibrate(torch.ones(1, 2, 3, 3), ONES, sigmoid=Sigmoid(None, ONES, ONES)),
            "square needs centre",
        ),
        (
            lambda: Pooled(None, None, torch.ones(1, 2), None, 1).affine(
                torch.ones(2), torch.ones(2)
            ),
            "max and min together",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_use_refuses_unknown_backends_and_restores_the_choice():
    with pytest.raises(ValueError, match="unknown backend 'tritn'"), kernels.use("tritn"):
        pass
    x = torch.ones(1, 1, 1, 1)
    before = kernels.chosen(x)
    with kernels.use("reference"):
        assert kernels.chosen(x).name == "reference"
    assert kernels.chosen(x) is before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_forced_backend_says_why_it_cannot_serve():
    with pytest.raises(RuntimeError, match=r"CUDA device|triton"), kernels.use("triton"):
        pass


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("gate", ["se", "srm", "spem", "simam"])
def test_eager_gates_are_differentiable_twice(gate, channels_last):
    module = create_gate(gate, 6).double().eval()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with kernels.use("eager"):
        assert gradgradcheck(module, (x.requires_grad_(),))


@pytest.mark.parametrize("gate", ["se", "srm", "spem", "simam"])
def test_eager_gates_work_under_the_transforms_of_torch_func(gate):
    module = create_gate(gate, 6).double().eval()
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    with kernels.use("eager"):
        found = torch.func.vmap(torch.func.grad(lambda one: module(one[None]).sum()))(x.detach())
        (expected,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wanted", [("max",), ("mean", "max"), ("var", "min"), STATISTICS])
@pytest.mark.parametrize("as_given", [lambda g: g, lambda g: g.transpose(2, 3), lambda g: g[:, :1]])
def test_an_eager_gradient_leaves_the_one_it_was_given_as_it_was(wanted, as_given):
    with kernels.use("eager"):
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        pooled_map = kernels.chosen(x).pool(x, wanted)
        shared, values = pooled_map.recalibrate.args[0], pooled_map.values
        grad = as_given(torch.randn(2, 3, 4, 4)).expand(2, 3, 4, 4)
        before = grad.clone()
        others = [torch.randn(2, 3) for _ in wanted]
        ends = [shared, *values.values()]
        (found,) = torch.autograd.grad(ends, x, [grad, *others])
    assert torch.equal(grad, before)
    with kernels.use("reference"):
        pooled = pool(x, wanted)
    apart = [value for value in pooled[:4] if value is not None]
    (alone,) = torch.autograd.grad(apart, x, others)
    torch.testing.assert_close(found, before + alone)
