"""MCA: the mean and the deviation along each axis give a multiplier along that axis."""

import math

import torch
from torch import Tensor, nn

from spem._checks import check_switch
from spem.gates.attention import Attention, multiply
from spem.gates.layers import Conv1d
from spem.kernels.reference import upcast


class MCA(Attention):
    """Multidimensional Collaborative Attention.

    For each axis D of C, H and W, with m and s the mean and the unbiased deviation over the two
    other axes of an image: t = (½ + σ(p₀))·m + (½ + σ(p₁))·s, g_D = σ(k taps of t along D);
    y = x·(g_C + g_H + g_W)/3, without the channel gate x·(g_H + g_W)/2. k is 3 along H and W; along
    C it grows with log₂C: 1 at 16, 3 from 32 to 128, 5 at 256. 12 + k parameters.

    Where the values have no spread, s is 0 with the gradient 0. A map of a single position has no
    unbiased deviation of its channels: the authors' code returns NaN; here s is 0 there.

    Args:
        channels: C, not 2 with the channel gate, at which the rule for k gives −1.
        channel_gate: False leaves g_C out.
        init: "paper" (p from U[0, 1), PyTorch's convolutions) or "identity" (the
            convolutions at 0, gain 2).

    Raises:
        ValueError: the channels are not allowed.

    Source: Yu, Zhang, Cheng, Song and Tang, "MCA: Multidimensional collaborative attention in deep
        convolutional neural networks for image recognition", Engineering Applications of Artificial
        Intelligence 126 (2023) 107079.
    """

    family = "strips"

    def __init__(self, channels: int, *, channel_gate: bool = True, init: str = "paper"):
        super().__init__(channels, init)
        check_switch("channel_gate", channel_gate)
        self.c_hw = _Axis(_count_taps(channels)) if channel_gate else None
        self.h_cw = _Axis(3)
        self.w_hc = _Axis(3)
        if init == "identity":
            axes = [axis for axis in (self.c_hw, self.h_cw, self.w_hc) if axis is not None]
            self.start_at_identity(2, *(axis.conv for axis in axes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            gates = [
                self.h_cw(wide, (1, 3))[:, None, :, None],
                self.w_hc(wide, (1, 2))[:, None, None, :],
            ]
            if self.c_hw is not None:
                gates.append(self.c_hw(wide, (2, 3))[:, :, None, None])
            multiplier = self.gain * (sum(gates[1:], gates[0]) / len(gates))
        return multiply(x, multiplier)


class _Axis(nn.Module):
    def __init__(self, taps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))
        self.conv = Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor, others: tuple[int, int]) -> Tensor:
        """Return the gate along the axis that is left, (N, its length)."""
        mean = x.mean(others, keepdim=True)
        squares = (x - mean).square().sum(others)
        count = x.shape[others[0]] * x.shape[others[1]]
        var = squares / (count - 1 if not isinstance(count, int) or count > 1 else 1)
        spread = var > 0
        # The gradient of the root is infinite at 0.
        deviation = var.where(spread, 1).sqrt().where(spread, 0)
        first, second = (0.5 + upcast(self.weight).sigmoid()).unbind()
        mixed = first * mean.flatten(1) + second * deviation
        return self.conv(mixed[:, None])[:, 0].sigmoid()


def _count_taps(channels: int) -> int:
    """Return k, odd; raise ValueError where the rule gives none."""
    taps = round(abs(math.log2(channels) - 1) / 1.5)
    taps -= 1 - taps % 2
    if taps < 1:
        raise ValueError(
            f"channels is {channels}, must be 1 or at least 4: MCA's rule gives its channel gate no"
            " kernel there; or write channel_gate=False"
        )
    return taps
