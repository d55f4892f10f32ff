"""Fused operations: compiled excitations, equal to eager PyTorch in values and gradients."""

import copy

import pytest
import torch
from fused_cases import FORMATS, compare, draw, drawn, run
from gatings import OPTIONS
from parity import assert_parity
from torch import nn
from torch.nn.utils import prune

import spem
from spem import gates, kernels
from spem.norm import GatedBatchNorm2d

# One of each kind: a norm, a convolution, …, a sigmoid of each position.
POOLED = ["spem", "se", "eca", "srm", "iebn", "nam"]
MORE = ("simam", "sa", "gc", "grn", "lct", "ese")
POOLED += [pytest.param(name, marks=pytest.mark.gates) for name in MORE]
POOLED += [pytest.param(n, marks=pytest.mark.gates) for n in ("gct", "ie", "sem", "lsas", "dianet")]


@pytest.mark.parametrize("name", POOLED)
def test_a_gated_norm_equals_eager(name):
    gate = spem.create_gate(name, 16, **OPTIONS.get(name, {}))
    norm = GatedBatchNorm2d(16, gate=drawn(gate)).double()
    norm.weight.data.copy_(torch.linspace(-2, 2, 16).round())  # negative, zero and positive
    nn.init.normal_(norm.bias)
    for training in (True, False):
        norm.train(training)
        for shape, layout in (((3, 16, 5, 7), FORMATS[1]), ((6, 16, 4, 4), FORMATS[1])):
            x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
            residual = torch.randn_like(x)
            compare(norm, x, residual)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["nam", *(pytest.param(n, marks=pytest.mark.gates) for n in MORE)])
def test_a_gate_alone_equals_eager(name, layout):
    options = OPTIONS.get(name, {}) | ({"pooling": "avg"} if name == "gc" else {})
    gate = drawn(spem.create_gate(name, 16, **options)).double()
    for training in (True, False):
        x = torch.randn(3, 16, 5, 7, dtype=torch.float64).to(memory_format=layout)
        compare(gate.train(training), x, torch.randn_like(x))
        compare(gate, x, None, False)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(4, 5, 5, 7), (1, 5, 4, 4), (3, 1, 5, 5), (4, 5, 1, 1)])
def test_a_norm_alone_equals_eager(shape, layout):
    norm = drawn(GatedBatchNorm2d(shape[1])).double()
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
    for relu in (True, False):
        compare(norm, x, torch.randn_like(x), relu)


@pytest.mark.parametrize("layout", FORMATS)
def test_ties_and_a_gate_alone(layout):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = drawn(spem.SPEM(16))

        def forward(self, x, residual, relu):
            return self.gate(x, residual, relu)

    x = torch.randn(4, 16, 5, 7, dtype=torch.float64).round().to(memory_format=layout)
    compare(Alone().double(), x)
    norm = GatedBatchNorm2d(16, gate=drawn(spem.SPEM(16))).double()
    compare(norm, x, torch.randn_like(x))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_other_norms_equal_eager(options):
    norm = GatedBatchNorm2d(5, **options).double()
    compare(norm, torch.randn(4, 5, 5, 7, dtype=torch.float64))


def test_a_cumulative_average_equals_eager():
    norm = GatedBatchNorm2d(5, momentum=None, gate=drawn(gates.ECA(5))).double()
    for _ in range(2):
        compare(norm, torch.randn(4, 5, 5, 7, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
def test_low_precision_by_the_tolerance_rule(dtype, layout):
    norm = GatedBatchNorm2d(16, gate=drawn(spem.SPEM(16)))
    draws = []
    for seed in range(4):
        torch.manual_seed(seed)
        x, residual, weight = (
            torch.randn(8, 16, 13, 17).to(dtype, memory_format=layout) for _ in range(3)
        )
        wide = [t.double() for t in (x, residual, weight)]
        draws.append(
            [
                run(copy.deepcopy(norm), "compiled", x, residual, True, weight),
                run(copy.deepcopy(norm), "eager", x, residual, True, weight),
                run(copy.deepcopy(norm).double(), "reference", wide[0], wide[1], True, wide[2]),
            ]
        )
    for name, value in draws[0][2].items():
        if value.is_floating_point():
            assert_parity(*(torch.stack([d[i][name] for d in draws]) for i in range(3)), name)


def test_the_variance_keeps_its_digits_under_a_large_mean():
    x = 1000 + torch.randn(2, 3, 32, 32)
    for layout in FORMATS:
        with kernels.use("compiled"):
            var = spem.pool(x.to(memory_format=layout), ["var"]).var
        truth = x.double().var((2, 3), correction=0)
        assert ((var - truth).abs() / truth).max() < 1e-5


@pytest.mark.parametrize("shape", [(5000, 3, 2, 2), (40, 120, 3, 3)])
def test_kernels_hold_for_more_images_and_channels_than_they_were_traced_with(shape):
    compare(GatedBatchNorm2d(shape[1], gate=drawn(spem.SPEM(shape[1]))).double(), *draw(shape, 2))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("spem", 2),
        pytest.param("sem", 3, marks=pytest.mark.gates),
        pytest.param("eca", 3, marks=pytest.mark.gates),
    ],
)
def test_sizes_that_equal_the_channels_by_chance(name, channels):
    norm = GatedBatchNorm2d(channels, gate=drawn(spem.create_gate(name, channels))).double()
    compare(norm, *draw((3, channels, 4, 4), 2))


@pytest.mark.parametrize("pool", ["max", "adaptive"])
def test_iebn_of_extrema_where_the_weight_is_zero(pool):
    norm = GatedBatchNorm2d(8, gate=drawn(gates.IEBN(8, pool=pool))).double()
    norm.weight.data[:4] = 0
    compare(norm, *draw((4, 8, 4, 4), 2))


def test_a_multiplier_for_all_images_alike():
    class Constant(gates.SE):
        traceable = True

        def excite(self, pooled):
            return self.fc2.bias.sigmoid()[None]

    norm = GatedBatchNorm2d(16, gate=drawn(Constant(16))).double()
    compare(norm, *draw((4, 16, 4, 4), 2))


def test_a_pruned_norm_equals_eager():
    norm = drawn(GatedBatchNorm2d(8, gate=gates.ECA(8))).double()
    prune.l1_unstructured(norm, "weight", 3)
    x = torch.randn(4, 8, 4, 4, dtype=torch.float64)
    with kernels.use("compiled"):
        compiled = norm(x)
    torch.testing.assert_close(compiled, norm(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(pytest.param(o, marks=pytest.mark.hard) for o in ({"momentum": None}, {"affine": False})),
    ],
)
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_norm_in_srm_counts_as_its_own(options, tracked, training):
    gate = gates.SRM(8)
    gate.bn = nn.BatchNorm1d(8, track_running_stats=tracked, **options)
    norm = GatedBatchNorm2d(8, gate=drawn(gate)).double().train(training)
    for seed in (1, 2):  # the second batch meets other running statistics
        torch.manual_seed(seed)
        compare(norm, *draw((4, 8, 4, 4), 2))


def test_a_norm_used_twice_equals_eager():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = GatedBatchNorm2d(16, gate=drawn(spem.SPEM(16)))

        def forward(self, x, residual, relu):
            return self.norm(self.norm(x), residual, relu)

    compare(Twice().double(), *draw((4, 16, 5, 5), 2))


def test_training_on_one_value_is_refused():
    with kernels.use("compiled"), pytest.raises(ValueError, match="more than one value"):
        GatedBatchNorm2d(3)(torch.randn(1, 3, 1, 1))
