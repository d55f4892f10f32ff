"""Maps and widths at the edge of what the newer gates are defined for."""

import pytest
import torch
from gatings import randomise
from position_cards import CARDS
from torch.nn.functional import conv1d

from spem.gates import create_gate

# What the authors' code cannot compute, or computes otherwise, and what is said of it.
WIDTHS = [
    ("sa", 64, {}, "groups is 64, must be a number whose double divides the 64 channels"),
    ("sa", 12, {"groups": 4}, "whose double divides the 12 channels"),
    ("ema", 16, {}, "factor is 32, must be a divisor of the 16 channels"),
    ("ema", 12, {"factor": 8}, "factor is 8, must be a divisor of the 12 channels"),
    ("lct", 10, {"groups": 4}, "groups is 4, must be a divisor of the 10 channels"),
    ("bam", 8, {}, "reduction is 16, must be at most 8"),
    ("gc", 8, {}, "reduction is 16, must be at most 8"),
    ("scse", 1, {}, "reduction is 2, must be at most 1"),
    ("ge", 8, {"variant": "plus", "map_size": 4}, "reduction is 16, must be at most 8"),
    ("psa", 3, {}, "channels is 3, PSA in layout 'parallel' needs a multiple of 2"),
    ("psa", 4, {"layout": "sequential"}, "channels is 4, .* needs a multiple of 8"),
    ("mca", 2, {}, "channels is 2, must be 1 or at least 4.* write channel_gate=False"),
    ("mca", 3, {}, "channels is 3, must be 1 or at least 4"),
]


@pytest.mark.parametrize(("name", "channels", "options", "said"), WIDTHS)
def test_forbidden_widths_are_refused_with_the_allowed_ones(name, channels, options, said):
    with pytest.raises(ValueError, match=said):
        create_gate(name, channels, **options)


@pytest.mark.parametrize(("name", "channels"), [("mca", 1), ("mca", 4), ("psa", 2), ("sa", 128)])
def test_the_widths_that_the_errors_name_are_allowed(name, channels):
    x = torch.randn(2, channels, 5, 4)
    assert create_gate(name, channels)(x).isfinite().all()


def test_mca_without_its_channel_gate_takes_every_width():
    assert create_gate("mca", 2, channel_gate=False)(torch.randn(2, 2, 5, 4)).isfinite().all()


@pytest.mark.parametrize("e_lambda", [1e-4, 0.1])
def test_simam_of_a_single_position_is_that_of_a_constant_channel(e_lambda):
    gate = create_gate("simam", 3, e_lambda=e_lambda).double()
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    y = gate(x)
    wide = gate(x.expand(2, 3, 4, 5))
    half = torch.tensor(0.5, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(y, half * x)
    torch.testing.assert_close(wide, y.expand_as(wide))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, half.expand_as(slope))


def test_mca_of_a_single_position_has_no_deviation_of_its_channels():
    gate = randomise(create_gate("mca", 16)).double()
    x = torch.randn(2, 16, 1, 1, dtype=torch.float64, requires_grad=True)
    values = x.flatten(1)
    gates = []
    for axis, mean, deviation in (
        (gate.c_hw, values, torch.zeros_like(values)),
        (gate.h_cw, values.mean(1, keepdim=True), values.std(1, keepdim=True)),
        (gate.w_hc, values.mean(1, keepdim=True), values.std(1, keepdim=True)),
    ):
        first, second = 0.5 + axis.weight.sigmoid()
        mixed, taps = (first * mean + second * deviation)[:, None], axis.conv.weight
        gates.append(conv1d(mixed, taps, padding=taps.shape[2] // 2)[:, 0].sigmoid())
    expected = x * (sum(gates) / 3)[:, :, None, None]
    y = gate(x)
    torch.testing.assert_close(y, expected)
    for found, wanted in zip(
        *(torch.autograd.grad(z.sum(), x) for z in (y, expected)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [(4, 7), (7, 4), (3, 9)])
def test_bam_takes_the_mean_of_all_positions_of_maps_that_are_not_square(size):
    gate = randomise(create_gate("bam", 16, reduction=4)).double().eval()
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(gate(x), CARDS["bam"](gate, x))


def test_bam_has_the_window_of_the_authors_by_its_own_name():
    gate = randomise(create_gate("bam", 16, reduction=4, window="square")).double().eval()
    mean = create_gate("bam", 16, reduction=4).double().eval()
    mean.load_state_dict(gate.state_dict())
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    channel = gate.channel(x[..., :4].mean((2, 3)))[:, :, None, None]
    expected = x * (1 + (channel * gate.spatial(x)).sigmoid())
    torch.testing.assert_close(gate(x), expected)
    assert not torch.allclose(mean(x), expected)
    torch.testing.assert_close(gate(x[..., :4]), mean(x[..., :4]))
    with pytest.raises(ValueError, match="window='square' needs maps that are not higher than"):
        gate(x.transpose(2, 3))


@pytest.mark.parametrize("e_lambda", [0, 1e-40, -1.0])
def test_simam_refuses_what_leaves_constant_channels_undefined(e_lambda):
    with pytest.raises(ValueError, match=f"e_lambda is {e_lambda}, must be"):
        create_gate("simam", 3, e_lambda=e_lambda)
    x = torch.full((2, 3, 4, 4), 7.0)
    assert create_gate("simam", 3, e_lambda=1e-30)(x).isfinite().all()
