"""EMA: efficient multi-scale attention, two branches of a group of channels that weigh each other.

It is no exponential moving average.
"""

import torch
from torch import Tensor

from spem.gates.attention import Attention, multiply
from spem.gates.layers import Conv1d, Conv2d, GroupNorm
from spem.gates.sge import check_groups
from spem.gates.strips import strip_means
from spem.kernels.reference import pool_mean, upcast


class EMA(Attention):
    """Efficient Multi-scale Attention.

    C is cut into g groups of k = C/g consecutive channels, which share all weights. In a group,
    with h and w the means of its rows and columns: u = K·[h; w] + b (1×1), t = x·σ(u_h)·σ(u_w);
    x₁ = GN(t), each channel by itself; x₂ = conv3×3(x); s = Σ_c softmax(GAP x₁)_c·x₂_c +
    Σ_c softmax(GAP x₂)_c·x₁_c; y = x·σ(s), one multiplier for each position of a group.
    10k² + 4k parameters.

    The mean of x₁ over the positions is the norm's shift β, so the first softmax is that of β.

    Args:
        channels: C.
        factor: g, a divisor of C.
        init: "paper", PyTorch's layers (multiplier about ½), or "identity" (the 3×3 convolution and
            the norm at 0, gain 2).

    Raises:
        ValueError: the factor does not divide the channels.

    Source: Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning",
        ICASSP 2023 (arXiv 2305.13563).
    """

    def __init__(self, channels: int, *, factor: int = 32, init: str = "paper"):
        super().__init__(channels, init)
        check_groups(factor, channels, "factor")
        self.factor, width = factor, channels // factor
        self.conv1x1 = Conv1d(width, width, 1)
        self.conv3x3 = Conv2d(width, width, 3, padding=1)
        self.gn = GroupNorm(width, width)
        if init == "identity":
            self.start_at_identity(2, self.conv3x3, self.gn)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            groups = upcast(x).unflatten(1, (self.factor, -1)).flatten(0, 1)
            rows, columns = strip_means(groups)
            strips = self.conv1x1(torch.cat([rows, columns], 2)).sigmoid()
            first, second = strips.split([x.shape[2], x.shape[3]], 2)
            narrow = self.gn(groups * first[:, :, :, None] * second[:, :, None, :])
            wide = self.conv3x3(groups)
            shares = upcast(self.gn.bias).softmax(0)[:, None, None]
            others = pool_mean(wide).softmax(1)[:, :, None, None]
            logits = (shares * wide + others * narrow).sum(1)
            multiplier = self.gain * logits.sigmoid().unflatten(0, (-1, self.factor))
        return multiply(x, multiplier.repeat_interleave(self.channels // self.factor, 1))
