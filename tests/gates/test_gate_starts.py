"""What a fresh gate is: its parameters, its first multipliers, the identity start."""

import pytest
import torch
from gatings import WITHOUT_IDENTITY
from mapped_cards import case_id
from torch import nn

from spem import kernels
from spem.gates import GATES, create_gate
from spem.norm import GatedBatchNorm2d

# Parameters added to ResNet-164: 18 blocks in each of three stages.
ADDED = [
    ("spem", {}, 32_364),
    ("se", {}, 202_104),
    ("se", {"bias": False}, 193_536),
    ("srp", {"rho": 0.5}, 202_104),
    ("cbam", {}, 207_504),
    ("eca", {}, 234),
    ("srm", {}, 32_256),
    ("sge", {"groups": 64}, 6_912),
    ("sge", {"groups": 8}, 864),
    ("ie", {}, 16_128),
    ("fcanet", {}, 193_536),
    ("gct", {}, 24_192),
    ("spa", {"variant": "icme-a"}, 2_128_896),
    ("spa", {"variant": "tmm-a"}, 194_706),
    ("sem", {}, 242_820),
    ("asr", {}, 210_168),
    ("asr", {"both": True}, 412_272),
    ("danet", {"attention": "position"}, 1_945_494),
    ("danet", {"attention": "channel"}, 54),
    ("coordatt", {}, 210_960),
    ("simam", {}, 0),
    ("ema", {}, 16_128),
    ("triplet", {}, 16_200),
    ("ese", {}, 1_556_352),
    ("gc", {}, 211_230),
    ("sa", {"groups": 8}, 3_024),
    ("ge", {}, 0),
    ("bam", {}, 413_838),
    ("scse", {}, 1_568_502),
    ("scse", {"reduction": 16}, 210_222),
    ("nam", {}, 16_128),
    ("mca", {}, 846),
    ("grn", {}, 16_128),
    ("psa", {}, 3_104_640),
    ("psa", {"layout": "sequential"}, 2_631_888),
    ("ela", {}, 145_152),
    ("lct", {}, 16_128),
]


def parameters_of(*arguments, **options):
    return sum(p.numel() for p in create_gate(*arguments, **options).parameters())


@pytest.mark.parametrize(("name", "options", "total"), ADDED, ids=case_id)
def test_the_parameters_added_to_resnet164(name, options, total):
    assert 18 * sum(parameters_of(name, width, **options) for width in (64, 128, 256)) == total


def test_the_parameters_of_gates_that_are_not_in_every_block():
    assert [parameters_of("dianet", width) for width in (64, 128, 256)] == [10_784, 42_048, 166_016]
    assert parameters_of("dianet", 64, leader=create_gate("dianet", 64)) == 0
    assert 18 * parameters_of("lsas", 256) == 161_568
    norms = [16] + 18 * [width for p in (16, 32, 64) for width in (p, p, 4 * p)]
    assert sum(parameters_of("iebn", width) for width in norms) == 24_224
    assert parameters_of("hpda", 64) == 5 * (64**2 // 16 + 64 // 16 * 4 + 3)
    for variant, count in (("icme-b", 2 * 21 * 32 + 64 * 2), ("tmm-b", 3 + 32 * 2 + 4 + 2 * 64)):
        assert parameters_of("spa", 64, variant=variant, source_channels=32) == count
    assert (
        parameters_of("spa", 64, variant="icme-c", source_channels=32) == 32 * 64 + 128 + 22 * 256
    )
    tmm = 32 * 64 + 128 + 64 * 64 + 128 + 3 + 2 * 4 * 64 + 8
    assert parameters_of("spa", 64, variant="tmm-c", source_channels=32) == tmm


# The value, and how far the mean over the channels may be from it where the start is random.
STARTS = [
    ("spem", {}, 0.03206, 0),
    ("ie", {}, 0.2689, 0),
    ("iebn", {}, 0.2689, 0),
    ("srm", {}, 0.5, 0),
    ("sge", {"groups": 8}, 0.7311, 0),
    ("gct", {}, 1, 0),
    ("gct", {"mode": "l1"}, 1, 0),
    ("danet", {}, 1, 0),
    ("se", {}, 0.5, 0.1),
    ("eca", {}, 0.5, 0.1),
    ("fcanet", {}, 0.5, 0.1),
    ("spa", {}, 0.5, 0.1),
    ("spa", {"variant": "tmm-a"}, 0.5, 0.1),
    ("cbam", {}, 0.25, 0.1),
    ("dianet", {}, 0.25, 0.1),
    ("asr", {}, 0.5, 0.1),
    ("lsas", {}, 0.5 * 0.38, 0.05),
    ("sem", {}, 0.5 * 0.5 * 0.38, 0.03),
]


@pytest.mark.parametrize(("name", "options", "value", "tolerance"), STARTS, ids=case_id)
def test_the_multipliers_at_the_start(name, options, value, tolerance):
    x = torch.rand(4, 64, 8, 8) + 0.5
    ratio = create_gate(name, 64, **options)(x) / x
    if tolerance:
        assert ratio.mean().item() == pytest.approx(value, abs=tolerance)
    else:
        torch.testing.assert_close(ratio, torch.full_like(x, value), atol=5e-5, rtol=0)


# Of maps from a normal distribution, (8, 64, 8, 8): mean and deviation of y/x over the positions.
DRAWN_STARTS = [
    ("gc", {}, 1, 0),
    ("gc", {"fusion": "mul"}, 0.5, 0),
    ("grn", {}, 1, 0),
    ("simam", {}, 0.674, 0.062),
    ("coordatt", {}, 0.248, 0.066),
    ("ema", {}, 0.53, 0.15),
    ("triplet", {}, 0.50, 0.13),
    ("ese", {}, 0.498, 0.018),
    ("bam", {}, 1.51, 0.08),
    ("scse", {}, 0.493, 0.099),
    ("nam", {}, 0.500, 0.004),
    ("mca", {}, 0.484, 0.022),
    ("ge", {}, 0.497, 0.031),
    ("ela", {}, 0.29, 0.09),
    ("psa", {}, 1.00, 0.07),
    ("psa", {"layout": "sequential"}, 0.25, 0.06),
]


@pytest.mark.parametrize(("name", "options", "value", "deviation"), DRAWN_STARTS, ids=case_id)
def test_the_multipliers_of_normal_maps_at_the_start(name, options, value, deviation):
    """The published figures are those of one draw of the layers, which is not known here."""
    ratios = []
    for seed in range(16):
        torch.manual_seed(seed)
        gate, x = create_gate(name, 64, **options), torch.randn(8, 64, 8, 8)
        ratios.append(gate(x) / x)
    means = torch.stack([ratio.mean() for ratio in ratios])
    spread = torch.stack([ratio.std() for ratio in ratios])
    for found, published in ((means, value), (spread, deviation)):
        slack = 0.005 + 4 * found.std().item()
        assert found.mean().item() == pytest.approx(published, abs=slack)


# Because of the permutation y/x says nothing: here in the order of the input.
def test_sa_starts_with_one_multiplier():
    gate, x = create_gate("sa", 64, groups=8), torch.randn(8, 64, 8, 8)
    back = gate(x).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(back / x, torch.full_like(x, 0.7311), atol=5e-5, rtol=0)


# Their multipliers follow the feature map, or the channels are permuted, from the start.
def test_only_gates_that_follow_the_map_from_the_start_lack_an_identity():
    assert set(WITHOUT_IDENTITY) == {"simam", "nam", "sa", "ge", "psa"}


@pytest.mark.parametrize("name", WITHOUT_IDENTITY)
def test_a_gate_without_an_identity_start_says_why(name):
    with pytest.raises(ValueError, match=r"has no start at the identity, for .* init='paper'"):
        create_gate(name, 64, init="identity")


NEEDED = {"srp": {"rho": 0.5}, "sge": {"groups": 4}, "ema": {"factor": 4}, "lct": {"groups": 4}}
IDENTITIES = [(name, NEEDED.get(name, {})) for name in GATES if name not in WITHOUT_IDENTITY] + [
    ("psa", {"layout": "sequential"}),
    ("ge", {"variant": "theta", "map_size": 5}),
    ("ge", {"variant": "plus", "map_size": 5}),
    ("ela", {"skip": True}),
    ("bam", {"fuse": "sum"}),
    ("scse", {"fuse": "sum"}),
    ("gc", {"fusion": "both", "pooling": "avg"}),
    ("ese", {"activation": "sigmoid"}),
    ("triplet", {"spatial": False}),
    ("mca", {"channel_gate": False}),
    ("spa", {"variant": "tmm-a"}),
    ("cbam", {"spatial": False}),
    ("lsas", {"order": 3}),
    ("gct", {"mode": "l1"}),
    ("asr", {"attention": "sem", "both": True}),
    ("se", {"bias": False, "pool": "max"}),
]


@pytest.mark.parametrize("implementation", ["reference", "eager"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "options"), IDENTITIES, ids=case_id)
def test_the_identity_start_changes_nothing(name, options, training, implementation):
    gate = create_gate(name, 16, init="identity", **options).train(training)
    x = torch.randn(3, 16, 5, 5)
    with kernels.use(implementation):
        assert torch.equal(gate(x), x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "options"), IDENTITIES, ids=case_id)
def test_the_identity_start_behind_a_norm(name, options, training):
    gate = create_gate(name, 16, init="identity", **options)
    norm = GatedBatchNorm2d(16, gate=gate).train(training)
    plain = nn.BatchNorm2d(16).train(training)
    nn.init.normal_(norm.weight)
    plain.weight = norm.weight
    x = torch.randn(3, 16, 5, 5)
    assert torch.equal(norm(x), plain(x))


def test_the_identity_start_of_dianet_holds_for_the_whole_stage():
    first = create_gate("dianet", 16, init="identity")
    later = create_gate("dianet", 16, init="identity", leader=first)
    x = torch.randn(3, 16, 5, 5)
    assert torch.equal(first(x), x)
    # The state of the first block reaches the second only through the layer that starts at 0,
    # and the cell keeps 0.
    assert torch.equal(later(x), x)
