"""GatedBatchNorm2d equals BatchNorm2d → gate → + residual → ReLU."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parity import assert_parity
from torch import nn

from spem import kernels
from spem.gates import SPEM
from spem.norm import GatedBatchNorm2d

IMPLEMENTATIONS = ["reference", "eager"]


def drawn_gate(channels, **options):
    gate = SPEM(channels, **options)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    return gate


class Chain(nn.Module):
    """The unfused formulation, by PyTorch's operations alone."""

    def __init__(self, norm: GatedBatchNorm2d):
        super().__init__()
        self.norm = nn.BatchNorm2d(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        ).to(next(norm.parameters(), torch.empty(0, dtype=torch.float64)).dtype)
        own = {k: v for k, v in norm.state_dict().items() if not k.startswith("gate.")}
        self.norm.load_state_dict(own)
        self.gate = copy.deepcopy(norm.gate)

    def forward(self, x, residual=None, relu=False):
        out = self.norm(x)
        if self.gate is not None:
            flat = out.flatten(2)
            largest, smallest = flat.max(-1).values, flat.min(-1).values
            gate, total = self.gate, largest + smallest
            first, second = gate.pool_weight.square() / gate.pool_weight.square().sum()
            u = first * largest + second * smallest
            u = gate.reweight_scale * u + gate.reweight_shift
            e = torch.sigmoid(gate.excitation_scale * u + gate.excitation_shift)
            r = torch.sigmoid(gate.reweight_scale * total + 2 * gate.reweight_shift)
            out = out * (e * r)[..., None, None].to(out.dtype)
        out = out if residual is None else out + residual
        return out.relu() if relu else out


def run(module, x, residual, relu, weight):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    residual = None if residual is None else residual.detach().clone().requires_grad_()
    module.zero_grad()
    out = module(x, residual, relu)
    (out * weight).sum().backward()
    grads = {f"d{name}": p.grad for name, p in module.named_parameters()}
    grads |= {"dx": x.grad} | ({} if residual is None else {"dresidual": residual.grad})
    return {"out": out.detach(), **grads, **dict(module.named_buffers())}


def by_role(results):
    return {name.replace("norm.", ""): value for name, value in results.items()}


def compare(norm, x, residual, relu):
    chain = Chain(norm).train(norm.training)
    weight = torch.randn(x.shape, dtype=x.dtype)
    if relu:  # which has no gradient at 0: rounding decides on which side of it a result lies
        before = copy.deepcopy(chain)(x, residual).detach()
        weight = weight.masked_fill(before.abs() < 1e-12, 0.0)
    expected = by_role(run(chain, x, residual, relu, weight))
    actual = run(norm, x, residual, relu, weight)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], atol=1e-10, rtol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


options = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.1, 0.7, None]),
        "affine": st.booleans(),
        "track_running_stats": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 4), *(st.integers(1, 6) for _ in range(3))),
    options=options,
    implementation=st.sampled_from(IMPLEMENTATIONS),
    gated=st.booleans(),
    training=st.booleans(),
    added=st.booleans(),
    relu=st.booleans(),
    ties=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
@example(
    shape=(3, 5, 1, 3),
    options={"momentum": 0.1, "affine": False, "track_running_stats": False},
    implementation="reference",
    gated=True,
    training=True,
    added=False,
    relu=True,
    ties=True,
    channels_last=False,
    seed=231,
)
def test_equals_the_unfused_chain(
    shape, options, implementation, gated, training, added, relu, ties, channels_last, seed
):
    torch.manual_seed(seed)
    gate = drawn_gate(shape[1]) if gated else None
    norm = GatedBatchNorm2d(shape[1], **options, gate=gate).double().train(training)
    if norm.affine:
        # Negative scales swap maximum and minimum, a zero scale ties all positions.
        norm.weight.data.copy_(torch.randint(-2, 3, (shape[1],)))
        nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    x = x.round() if ties else x
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    with kernels.use(implementation):
        compare(norm, x, torch.randn_like(x) if added else None, relu)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_a_scale_of_zero_ties_all_positions(implementation, training):
    norm = GatedBatchNorm2d(3, gate=drawn_gate(3)).double().train(training)
    norm.weight.data.copy_(torch.tensor([0.0, 1.0, -1.0]))
    with kernels.use(implementation):
        compare(norm, torch.randn(4, 3, 5, 5, dtype=torch.float64), None, relu=False)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 16, 13, 17), (6, 3, 1, 1), (4, 1, 7, 7)])
def test_low_precision_by_the_tolerance_rule(implementation, dtype, shape):
    draws = [_low_precision(implementation, dtype, shape, seed) for seed in range(8)]
    assert draws[0][0]["out"].dtype == dtype
    # Errors are random: the largest of several draws tells more than one of a (2,) gradient.
    for name, value in draws[0][2].items():
        if value.is_floating_point():
            assert_parity(*(torch.stack([d[i][name] for d in draws]) for i in range(3)), name)


def _low_precision(implementation, dtype, shape, seed):
    torch.manual_seed(seed)
    norm = GatedBatchNorm2d(shape[1], gate=drawn_gate(shape[1]))
    nn.init.normal_(norm.weight)
    chain, truth = Chain(norm), Chain(norm).double()
    x, residual, weight = (torch.randn(shape).to(dtype) for _ in range(3))
    with kernels.use(implementation):
        actual = run(norm, x, residual, True, weight)
    naive = by_role(run(chain, x, residual, True, weight))
    return actual, naive, by_role(run(truth, x.double(), residual.double(), True, weight.double()))


@pytest.mark.parametrize("training", [True, False])
def test_without_a_gate_it_is_batch_norm_bit_for_bit(training):
    norm, plain = GatedBatchNorm2d(5).train(training), nn.BatchNorm2d(5).train(training)
    x = torch.randn(4, 5, 6, 7)
    for _ in range(2):
        assert torch.equal(norm(x), plain(x))
    for actual, expected in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(actual, expected)
    assert norm.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_convergence_is_that_of_the_unfused_chain(implementation):
    torch.manual_seed(0)
    norm = GatedBatchNorm2d(6, gate=drawn_gate(6)).double()
    networks = [norm, Chain(norm).double()]
    losses = []
    x = torch.randn(30, 8, 6, 5, 5, dtype=torch.float64)
    target = torch.randn(8, 6, 5, 5, dtype=torch.float64)
    for network in networks:
        conv = nn.Conv2d(6, 6, 3, padding=1).double()
        with torch.no_grad():
            conv.weight.copy_(torch.linspace(-1, 1, conv.weight.numel()).reshape(6, 6, 3, 3))
            conv.bias.zero_()
        optimizer = torch.optim.SGD([*conv.parameters(), *network.parameters()], 0.05, 0.9)
        history = []
        for step in range(30):
            with kernels.use(implementation):
                out = network(conv(x[step]), x[step], relu=True)
            loss = (out - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
    assert losses[0][-1] < losses[0][0]


def test_traced_by_dynamo_it_is_the_same():
    torch.manual_seed(0)
    norm = GatedBatchNorm2d(4, momentum=None, gate=drawn_gate(4)).double()
    x, residual = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    compiled = copy.deepcopy(norm)
    traced = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x, residual, True), norm(x, residual, True))
    for actual, expected in zip(compiled.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_empty_batch_and_the_single_value():
    norm = GatedBatchNorm2d(3, gate=SPEM(3))
    for implementation in IMPLEMENTATIONS:
        with kernels.use(implementation):
            assert norm(torch.randn(0, 3, 4, 4)).shape == (0, 3, 4, 4)
            with pytest.raises(ValueError, match="more than"):
                norm(torch.randn(1, 3, 1, 1))
            assert norm.eval()(torch.randn(1, 3, 1, 1)).isfinite().all()
            norm.train()


def test_a_gate_of_other_width_is_refused():
    with pytest.raises(ValueError, match="the gate has 4 channels, the norm 3"):
        GatedBatchNorm2d(3, gate=SPEM(4))


@pytest.mark.parametrize("gate", [None, "spem"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bad_input_is_named(gate, implementation):
    norm = GatedBatchNorm2d(3, gate=SPEM(3) if gate else None)
    x = torch.randn(2, 3, 4, 4)
    with kernels.use(implementation):
        with pytest.raises(ValueError, match="built for 3 channels"):
            norm(torch.randn(2, 4, 5, 5))
        for residual in (torch.randn(1, 3, 1, 1), x.double()):
            with pytest.raises(ValueError, match="residual is"):
                norm(x, residual)


def test_autocast_keeps_statistics_in_float32():
    norm = GatedBatchNorm2d(3, gate=drawn_gate(3))
    seen = []
    original = norm.gate.excite
    norm.gate.excite = lambda pooled: seen.append(pooled.max.dtype) or original(pooled)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(nn.Conv2d(3, 3, 1)(torch.randn(2, 3, 4, 4)), relu=True)
    assert out.dtype == torch.bfloat16
    assert seen == [torch.float32]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_large_float16_maps_are_finite(layout):
    norm = GatedBatchNorm2d(4)
    x = (torch.randn(3, 4, 7, 7) * 1e4).to(torch.float16, memory_format=layout).requires_grad_()
    out = norm(x)
    out.backward(torch.randn_like(out))
    assert out.dtype == torch.float16
    assert out.stride() == x.stride()
    assert x.grad.isfinite().all()
