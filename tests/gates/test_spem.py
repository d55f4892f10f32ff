"""SPEM against an independent transcription of its equations, and its identities."""

import pytest
import torch
from torch import nn

from spem import kernels
from spem.gates import SPEM, auxiliary_loss, create_gate
from spem.norm import GatedBatchNorm2d

POOLS = [
    {"pool": "adaptive"},
    {"pool": "adaptive", "mixing": "sigmoid"},
    {"pool": "avg"},
    {"pool": "max"},
    {"pool": "min"},
    {"pool": "fixed", "mix": 0.3},
]
SWITCHES = [
    {"excitation": excitation, "reweighting": reweighting}
    for excitation in (True, False)
    for reweighting in (True, False)
]
FORMS = [{"form": "code"}, {"form": "figure"}]


def drawn(gate):
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    return gate.double()


def by_the_card(gate, x):
    """The multipliers, one image and one channel at a time, by scalars."""
    out = torch.empty(x.shape[:2], dtype=x.dtype)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[n, c].flatten()
            out[n, c] = _multiplier(gate, c, values.max(), values.min(), values.mean())
    return out


def _multiplier(gate, c, m, q, mean):
    if gate.pool == "adaptive" and gate.mixing == "squared":
        p0, p1 = gate.pool_weight
        u = p0**2 / (p0**2 + p1**2) * m + p1**2 / (p0**2 + p1**2) * q
    elif gate.pool == "adaptive":
        share = 1 / (1 + torch.exp(-gate.pool_logit))
        u = share * m + (1 - share) * q
    else:
        u = {"avg": mean, "max": m, "min": q, "fixed": 0.3 * m + 0.7 * q}[gate.pool]
    w1, b1, w2, b2 = (
        getattr(gate, name)[c] if hasattr(gate, name) else None
        for name in ("excitation_scale", "excitation_shift", "reweight_scale", "reweight_shift")
    )
    if not gate.excitation and not gate.reweighting:
        return torch.sigmoid(u)
    if gate.form == "figure":
        exciting = w1 * u + b1 if gate.excitation else 1
        weighting = torch.sigmoid((w2 * m + b2) + (w2 * q + b2)) if gate.reweighting else 1
        return torch.sigmoid(exciting * weighting)
    u = w2 * u + b2 if gate.reweighting else u
    e = torch.sigmoid(w1 * u + b1) if gate.excitation else 1
    return e * (torch.sigmoid((w2 * m + b2) + (w2 * q + b2)) if gate.reweighting else 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_numbers_equal_the_equations(form, switches, pool):
    gate = drawn(SPEM(3, **form, **switches, **pool))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = x * by_the_card(gate, x)[..., None, None]
    for name in ("reference", "eager"):
        with kernels.use(name):
            torch.testing.assert_close(gate(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize(
    ("weights", "other"),
    [
        ((1.0, 0.0), {"pool": "max"}),
        ((0.0, 1.0), {"pool": "min"}),
        ((0.3**0.5, 0.7**0.5), {"pool": "fixed", "mix": 0.3}),
    ],
)
def test_the_adaptive_pooling_contains_the_others(form, switches, weights, other):
    gate = drawn(SPEM(3, **form, **switches))
    gate.pool_weight.data.copy_(torch.tensor(weights, dtype=torch.float64))
    single = SPEM(3, **form, **switches, **other).double()
    single.load_state_dict(gate.state_dict(), strict=False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(gate(x), single(x), atol=1e-10, rtol=0)


def test_the_scale_of_the_mixing_weights_does_not_matter():
    gate = drawn(SPEM(3))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = gate(x)
    gate.pool_weight.data.mul_(-7)
    torch.testing.assert_close(gate(x), before, atol=1e-12, rtol=0)


def test_the_sigmoid_mixing_starts_where_the_squares_start():
    assert SPEM(3, mixing="sigmoid").mixing_ratio() == SPEM(3).mixing_ratio() == 0.5


def test_parameters_and_their_start():
    gate = SPEM(5)
    start = {name: (tuple(p.shape), p.unique().item()) for name, p in gate.named_parameters()}
    assert start == {
        "pool_weight": ((2,), 0.5),
        "excitation_scale": ((5,), 0),
        "excitation_shift": ((5,), -1),
        "reweight_scale": ((5,), 0),
        "reweight_shift": ((5,), -1),
    }
    assert gate.gain == 1
    assert next(iter(gate.state_dict())) == "pool_weight"
    multiplier = gate(torch.ones(2, 5, 3, 3))
    torch.testing.assert_close(multiplier, torch.full_like(multiplier, 0.03206), atol=5e-6, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", SWITCHES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("implementation", ["reference", "eager"])
def test_the_identity_start_is_exactly_one(form, switches, dtype, implementation):
    gate = SPEM(64, init="identity", **form, **switches).to(dtype)
    x = torch.randn(2, 64, 5, 5, dtype=dtype)
    # The gain of σ(σ(0)) is no power of two: widened to float64 it keeps its float32 rounding.
    rounded = dtype == torch.float64 and gate.gain not in (2, 4)
    with kernels.use(implementation):
        tolerance = torch.finfo(torch.float32).eps if rounded else 0
        torch.testing.assert_close(gate(x), x, rtol=tolerance, atol=0)


def test_the_gain_travels_in_the_state_dict():
    gate = SPEM(4)
    gate.load_state_dict(SPEM(4, init="identity").state_dict())
    assert gate.gain == 4


def test_the_auxiliary_loss_is_summed_over_a_model():
    model = nn.Sequential(SPEM(4), SPEM(4, alpha=1.0), SPEM(4, mixing="sigmoid"), nn.ReLU())
    model[1].pool_weight.data.copy_(torch.tensor([1.0, 2.0]))
    assert auxiliary_loss(model).item() == pytest.approx(0.1 * 0.5 + 1.0 * 5)
    auxiliary_loss(model).backward()
    torch.testing.assert_close(model[1].pool_weight.grad, torch.tensor([2.0, 4.0]))
    assert auxiliary_loss(nn.Linear(2, 2)) == 0


@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("switches", SWITCHES[:3])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_all_parameters_learn_by_the_third_step(init, form, switches, pool):
    gate = SPEM(4, init=init, **form, **switches, **pool)
    norm = GatedBatchNorm2d(4, gate=gate)
    optimizer = torch.optim.SGD(norm.parameters(), 0.1)
    x, target = torch.randn(2, 8, 4, 5, 5)
    learned, first = set(), set()
    for step in range(3):
        optimizer.zero_grad()
        (norm(x) - target).square().mean().backward()
        gradients = {n: p.grad for n, p in gate.named_parameters() if p.grad is not None}
        found = {n for n, gradient in gradients.items() if gradient.abs().max() > 0}
        learned |= found
        first = first or found
        assert found or step
        optimizer.step()
    assert first
    # Nothing but the excitation reads the mixture u.
    unread = set() if gate.excitation else {"pool_weight", "pool_logit"}
    assert learned == {name for name, _ in gate.named_parameters()} - unread


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "mean"}, "unknown pool 'mean'; known: "),
        ({"pool": "fixed"}, "mix is None with pool='fixed': pool='fixed' needs it"),
        ({"mix": 0.5}, "mix is 0.5 with pool='adaptive'"),
        ({"pool": "fixed", "mix": 1.5}, r"mix is 1.5, must lie in \[0, 1\]"),
        ({"pool": "fixed", "mix": float("nan")}, r"mix is nan, must lie in \[0, 1\]"),
        ({"mixing": "softmax"}, "unknown mixing 'softmax'"),
        ({"mixing": "sigmoid", "pool": "avg"}, "mixing='sigmoid' belongs to pool='adaptive'"),
        ({"mixing": "sigmoid", "alpha": 0.1}, "alpha is 0.1, but only"),
        ({"alpha": -1.0}, "alpha is -1.0, must be"),
        ({"form": "paper"}, "unknown form 'paper'"),
        ({"init": "zero"}, "unknown init 'zero'"),
        (
            {"init": "identity", "excitation": False, "reweighting": False},
            "needs excitation or reweighting",
        ),
        ({"pooling": "max"}, "unknown option of gate 'spem' 'pooling'; known: pool"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_gate("spem", 8, **options)


@pytest.mark.parametrize("channels", [0, -3, 2.0, "8"])
def test_bad_widths_are_named(channels):
    with pytest.raises(ValueError, match=r"channels is .*must be a whole number"):
        SPEM(channels)


def test_a_map_of_other_width_is_refused():
    with pytest.raises(ValueError, match=r"built for 4 channels, the input is \(2, 3, 5, 5\)"):
        SPEM(4)(torch.ones(2, 3, 5, 5))


def test_unknown_gates_are_named():
    with pytest.raises(ValueError, match="unknown gate 'spme'; known: spem"):
        create_gate("spme", 8)
