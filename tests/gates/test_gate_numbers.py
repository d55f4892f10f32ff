"""Every gate's numbers and gradients against the published equations, in float64."""

import copy
import itertools

import cards
import pytest
import torch
from cards import sigma
from mapped_cards import (
    INNER,
    POOLS,
    case_id,
    descriptor,
    drawn,
    drawn_norm,
    gated,
    hpda_maps,
    ie,
    layers,
    spa,
    unit_of,
)
from torch import nn

from spem import kernels
from spem.gates import create_gate
from spem.gates.regions import bin_means

IMPLEMENTATIONS = ["reference", "eager"]
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


POOLED = ("se", "eca", "ie", "iebn", "sem", "lsas", "dianet")
CASES = [(name, 8, pool) for name in POOLED for pool in POOLS] + [
    ("se", 24, {"bias": False}),
    ("se", 8, {"reduction": 2, "bias": False}),
    ("se", 24, {"reduction": 16}),
    ("srp", 8, {"rho": 1.0, "reduction": 3}),
    ("eca", 5, {"kernel_size": 7}),
    ("srm", 8, {}),
    ("srm", 8, {"eps": 0.1}),
    ("gct", 8, {}),
    ("gct", 8, {"eps": 0.1}),
    ("gct", 8, {"mode": "l1"}),
    ("gct", 8, {"mode": "l1", "after_relu": True}),
    ("cbam", 8, {"reduction": 2}),
    ("cbam", 8, {"reduction": 3, "pools": ("lp", "lse"), "kernel_size": 3}),
    ("cbam", 8, {"reduction": 2, "pools": ("avg", "max", "lp", "lse"), "spatial": False}),
    ("sge", 8, {"groups": 2}),
    ("sge", 8, {"groups": 8, "eps": 0.1}),
    ("fcanet", 16, {}),
    ("fcanet", 16, {"frequencies": "low8", "dct_size": 14, "reduction": 4}),
    ("fcanet", 32, {"frequencies": "bot32", "dct_size": 8}),
    ("fcanet", 16, {"frequencies": "top2", "dct_size": 4}),
    ("spa", 8, {"variant": "icme-a", "reduction": 2}),
    ("spa", 8, {"variant": "tmm-a", "reduction": 3}),
    ("sem", 8, {"reduction": 2, "kernel_size": 5}),
    *(("lsas", 8, {"order": order, "reduction": 2}) for order in range(4)),
    ("lsas", 8, {"bias": False}),
    ("dianet", 8, {"reduction": 3}),
    *(("danet", 8, {"attention": attention}) for attention in ("position", "channel", "both")),
    ("hpda", 8, {"reduction": 2, "branches": 3}),
    *(("asr", 8, {"attention": name}) for name in INNER),
    *(("asr", 8, {"attention": name, "both": True}) for name in INNER),
    ("asr", 8, {"attention_options": {"pool": "fixed", "mix": 0.3}, "both": True}),
]  # fmt: skip


def compare(actual, expected, x, parameters):
    """Compare two maps, and their gradients by x and by every parameter."""
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
    weight, wanted = torch.randn(actual.shape), {"x": x, **parameters}
    ours, theirs = (
        dict(zip(wanted, gradients((out * weight).sum(), [*wanted.values()]), strict=True))
        for out in (actual, expected)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)


@TRAINING
@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=case_id)
def test_the_gate_equals_its_card(name, channels, options, training):
    gate = drawn(name, channels, **options).train(training)
    x = torch.randn(3, channels, 4, 5, requires_grad=True)
    expected = gated(name, gate, x, options)
    for implementation in IMPLEMENTATIONS:
        with kernels.use(implementation):
            compare(gate(x), expected, x, dict(gate.named_parameters()))


# How the pooling folds into a norm is the same in all gates that can choose it.
NORMED = [c for c in CASES if c[0] == "ie" or (c[0] != "iebn" and "pool" not in c[2])]


@TRAINING
@pytest.mark.parametrize(("name", "channels", "options"), NORMED, ids=case_id)
def test_behind_a_norm_it_is_the_norm_then_the_gate(name, channels, options, training):
    norm = drawn_norm(channels, drawn(name, channels, **options)).train(training)
    plain, gate = copy.deepcopy(norm), copy.deepcopy(norm.gate)
    x = torch.randn(3, channels, 4, 5, requires_grad=True)
    plain.gate = None
    for implementation in IMPLEMENTATIONS:
        with kernels.use(implementation):
            actual = norm(x)
            expected = gate(nn.BatchNorm2d.forward(plain, x))
            compare(actual, expected, x, {})


@TRAINING
@pytest.mark.parametrize("options", POOLS, ids=case_id)
def test_iebn_multiplies_the_scale_of_its_norm_alone(options, training):
    norm = drawn_norm(8, drawn("iebn", 8, **options)).train(training)
    x = torch.randn(3, 8, 4, 5, requires_grad=True)
    for implementation in IMPLEMENTATIONS:
        expected = cards.iebn(x, norm, ie(norm.gate, x, **options))
        with kernels.use(implementation):
            compare(norm(x), expected, x, dict(norm.named_parameters()))


@TRAINING
@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("variant", ["icme-b", "icme-c", "tmm-b", "tmm-c"])
def test_spa_reads_the_source(variant, width, training):
    options = {"variant": variant, "source_channels": width, "reduction": 2}
    gate = drawn("spa", 8, **options).train(training)
    x = torch.randn(3, 8, 4, 5, requires_grad=True)
    source = torch.randn(3, width, 9, 13)
    multiplier = spa(gate, x, variant, source)
    expected = x * (multiplier[..., None, None] if multiplier.dim() == 2 else multiplier)
    compare(gate(x, source), expected, x, dict(gate.named_parameters()))


@pytest.mark.parametrize("options", POOLS, ids=case_id)
def test_dianet_carries_its_state_through_three_blocks_and_no_further(options):
    first = drawn("dianet", 8, **options)
    gates = [first, *(drawn("dianet", 8, leader=first, **options) for _ in range(2))]
    parameters = {f"{i}.{k}": p for i, g in enumerate(gates) for k, p in g.named_parameters()}
    for _ in range(2):
        x = torch.randn(3, 8, 4, 5, requires_grad=True)
        h = c = torch.zeros(3, 8)
        actual, expected = x, x
        for gate in gates:
            actual = gate(actual)
            u = descriptor(gate, expected, **options)
            h, c = cards.dianet_step(u, h, c, *unit_of(first))
            expected = expected * h[..., None, None]
        compare(actual, expected, x, parameters)


def regions_of(x, rho, regions, per_channel, generator):
    """The means of random regions, K of them averaged, one map at a time: (N, C)."""
    n, channels, *size = x.shape
    sides = [max(1, round(rho * extent)) for extent in size]
    maps = (regions, n, channels if per_channel else 1)
    i, j = (
        torch.randint(e - s + 1, maps, generator=generator)
        for e, s in zip(size, sides, strict=True)
    )
    out = torch.zeros(n, channels)
    for k, image, c in itertools.product(range(regions), range(n), range(channels)):
        top, left = (corner[k, image, c % maps[2]] for corner in (i, j))
        region = x[image, c, top : top + sides[0], left : left + sides[1]]
        out[image, c] += region.sum() / region.numel() / regions
    return out


def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("rho", "regions"), [(0.5, 1), (0.3, 3), (0.01, 2)])
def test_the_regions_of_stochastic_pooling(rho, regions, per_channel):
    options = {"rho": rho, "regions": regions, "per_channel": per_channel}
    x = torch.randn(3, 8, 4, 5)
    expected = regions_of(x, **options, generator=generator())
    gate = drawn("srp", 8, **options)
    gate.generator = generator()
    logits = cards.se_logits(expected, *layers(gate.fc1, gate.fc2))
    torch.testing.assert_close(gate(x), x * sigma(logits)[..., None, None], atol=1e-10, rtol=0)
    behind = drawn(
        "asr", 8, attention="ie", attention_options={"pool": "srp", **options}, both=True
    )
    constant, inner = ie(behind.attention, behind.vector[..., None, None]), behind.behind
    inner.generator = generator()
    expected = constant * sigma(inner.scale * constant * expected + inner.shift)
    torch.testing.assert_close(behind(x), x * expected[..., None, None], atol=1e-10, rtol=0)


def test_the_corners_of_regions_are_uniform():
    gate = create_gate("srp", 1, rho=0.5)
    gate.generator = generator()
    x = torch.arange(12.0).reshape(1, 1, 3, 4).expand(6000, 1, 3, 4)
    # Sides 2 and 2 of 3 and 4: six corners, whose region means are 2.5 + 4·row + column.
    found, counts = gate.pool_map(x).mean.unique(return_counts=True)
    assert found.tolist() == [2.5, 3.5, 4.5, 6.5, 7.5, 8.5]
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_stochastic_pooling_behind_a_norm():
    norm = drawn_norm(8, drawn("srp", 8, rho=0.4, regions=2))
    x, outs = torch.randn(3, 8, 4, 5), []
    for implementation in IMPLEMENTATIONS:
        norm.gate.generator = generator()
        with kernels.use(implementation):
            outs.append(norm(x))
    torch.testing.assert_close(*outs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("margin", [1.0, 0.05])
def test_the_diversity_loss_of_hpda(margin):
    gate = drawn("hpda", 8, reduction=2, branches=3, margin=margin)
    x = torch.randn(3, 8, 4, 5, requires_grad=True)
    assert gate.auxiliary_loss() is None
    gate(x)
    expected = 0.5 * cards.hpda_loss(hpda_maps(gate, x), margin)
    assert expected > 0
    parameters = dict(gate.named_parameters())
    compare(gate.auxiliary_loss(), expected, x, parameters)


def test_the_descriptors_of_hpda():
    gate, x = drawn("hpda", 8, reduction=2, branches=3), torch.randn(3, 8, 4, 5)
    expected = torch.cat([cards.average(x * attention) for attention in hpda_maps(gate, x)], 1)
    torch.testing.assert_close(gate.descriptors(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 12), (9, 7)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_adaptive_averages_of_fcanet_and_spa(size, deterministic):
    x = torch.randn(2, 3, *size, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        for side in (1, 2, 4, 7):
            compare(bin_means(x, side), cards.adaptive(x, side, side), x, {})
    finally:
        torch.use_deterministic_algorithms(before)


def test_the_kernel_sizes_of_eca():
    table = {4: 1, 8: 3, 16: 3, 32: 3, 64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}
    for channels, k in table.items():
        assert create_gate("eca", channels).conv.weight.shape == (1, 1, k)
        assert create_gate("sem", channels).conv.weight.shape == (1, 1, k)


def test_the_spatial_norm_of_cbam():
    norm = create_gate("cbam", 16).spatial.bn
    assert (norm.eps, norm.momentum, norm.weight.item()) == (1e-5, 0.01, 0)


def test_the_maximum_of_tied_channels_sends_its_gradient_to_the_first():
    gate = drawn("cbam", 4, reduction=1, pools=("avg",)).eval()
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    expected = gated("cbam", gate, x, {"pools": ("avg",)})
    compare(gate(x), expected, x, dict(gate.named_parameters()))
