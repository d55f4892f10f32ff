"""Gates and norms by Triton's kernels and compiled excitations, equal to eager PyTorch.

Collected as `triton_maps.py` says.
"""

import copy

import pytest
import torch
from gatings import OPTIONS, build_gated
from parity import assert_parity
from torch import nn
from triton_maps import DEVICE

import spem
from spem import kernels
from spem.kernels import fused, inductor
from spem.kernels.triton.passes import TRITON
from spem.norm import GatedBatchNorm2d

OTHERS = (
    "se",
    "srm",
    "eca",
    "gct",
    "ie",
    "iebn",
    "sem",
    "lsas",
    "dianet",
    "cbam",
    "simam",
    "sa",
    "gc",
    "grn",
)
POOLED = [
    "spem",
    "nam",
    None,
    *(pytest.param(name, marks=pytest.mark.gates) for name in OTHERS),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


def drawn_norm(name, channels=16):
    options = {"spatial": False} if name == "cbam" else OPTIONS.get(name, {})
    gate = None if name is None else spem.create_gate(name, channels, **options)
    norm = GatedBatchNorm2d(channels, gate=gate)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        # Of a weight of 0 all positions tie; a negative one swaps the extrema.
        norm.weight.copy_(torch.linspace(-2, 2, channels).round())
    return norm.to(DEVICE)


def draw(shape, layout, dtype):
    return [torch.randn(shape).to(DEVICE, dtype, memory_format=layout) for _ in range(3)]


def run(norm, implementation, x, residual, cotangent):
    norm, x, residual = copy.deepcopy(norm), x.detach(), residual.detach()
    leaves = [x.requires_grad_(norm.training), residual.requires_grad_(norm.training)]
    with kernels.use(implementation), torch.set_grad_enabled(norm.training):
        out = norm(x, residual, True)
    found = {"out": out.detach()}
    if norm.training:
        out.backward(cotangent)
        found |= {"dx": leaves[0].grad, "dresidual": leaves[1].grad}
        found |= {f"d{name}": p.grad for name, p in norm.named_parameters()}
        x.grad = residual.grad = None
    return found | {name: b for name, b in norm.named_buffers() if b.is_floating_point()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", POOLED)
def test_a_norm_equals_eager(name, layout, training):
    assert fused.serves(TRITON)
    norm = drawn_norm(name).double().train(training)
    given = draw((6, 16, 5, 7), layout, torch.float64)
    expected = run(norm, "eager", *given)
    actual = run(norm, "triton", *given)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, atol=1e-9, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )
    assert actual["out"].stride() == expected["out"].stride()


@pytest.mark.hard
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["spem", None])
def test_low_precision_by_the_tolerance_rule(name, layout, dtype):
    norm = drawn_norm(name)
    draws = []
    for seed in range(4):
        torch.manual_seed(seed)
        given = draw((4, 16, 7, 9), layout, dtype)
        wide = [t.double() for t in given]
        draws.append(
            [
                run(norm, "triton", *given),
                run(norm, "eager", *given),
                run(norm.double(), "reference", *wide),
            ]
        )
        norm.float()
    for name in draws[0][2]:
        assert_parity(*(torch.stack([d[i][name] for d in draws]) for i in range(3)), name)


def test_a_gate_overwrites_its_map_where_it_may():
    gate = spem.SPEM(16).to(DEVICE).eval()
    x = torch.randn(2, 16, 4, 4, device=DEVICE)
    with torch.no_grad(), kernels.use("eager"):
        expected = gate(x, None, True)
    with torch.no_grad(), kernels.use("triton"):
        out = gate(x, None, True, overwrite=True)
    assert out.data_ptr() == x.data_ptr()
    torch.testing.assert_close(out, expected)


def test_a_network_compiles_one_kernel_each_way_for_norms_with_and_without_a_gate():
    model = spem.create_model("resnet29", "spem").to(DEVICE)
    x, before = torch.randn(2, 3, 8, 8, device=DEVICE), inductor.count()
    with kernels.use("triton"):
        assert kernels.chosen(x) is TRITON
        model(x).sum().backward()
    assert inductor.count() - before <= 4


@pytest.mark.parametrize("gate", ["se", "dianet", "simam"])
def test_gradients_of_gradients_are_those_of_the_reference(gate):
    norm = build_gated(gate, "norm", 16).to(DEVICE)
    x = torch.randn(3, 16, 5, 6, device=DEVICE, requires_grad=True)
    found = {}
    for backend in ("triton", "reference"):
        with kernels.use(backend):
            (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
            found[backend] = torch.autograd.grad(slope.square().sum(), [x, *norm.parameters()])
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-4)
