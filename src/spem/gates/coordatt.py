"""CoordAtt: a multiplier of each row and one of each column of a channel."""

import torch
from torch import Tensor
from torch.nn.functional import hardswish

from spem._checks import check_whole
from spem.gates.attention import Attention, multiply
from spem.gates.layers import BatchNorm1d, Conv1d
from spem.gates.strips import strip_means


class CoordAtt(Attention):
    """Coordinate Attention.

    The means of the rows, h (N, C, H), and of the columns, w (N, C, W), share one layer:
    u = hswish(BN(V·[h; w] + v)), (N, R, H + W), BN over images and strips. Multiplier of the
    position (i, j): σ(P_h·u_i + p_h)·σ(P_w·u_j + p_w). 3CR + 3R + 2C parameters with
    R = max(8, C // reduction).

    Args:
        channels: C.
        reduction: r.
        init: "paper", PyTorch's layers (multiplier about ¼), or "identity", the last layers at 0
            and gain 4.

    Raises:
        ValueError: the reduction is out of range.

    Source: Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR
        2021 (arXiv 2103.02907).
    """

    family = "strips"

    def __init__(self, channels: int, *, reduction: int = 32, init: str = "paper"):
        super().__init__(channels, init)
        check_whole("reduction", reduction)
        width = max(8, channels // reduction)
        self.conv1 = Conv1d(channels, width, 1)
        self.bn1 = BatchNorm1d(width)
        self.conv_h = Conv1d(width, channels, 1)
        self.conv_w = Conv1d(width, channels, 1)
        if init == "identity":
            self.start_at_identity(4, self.conv_h, self.conv_w)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = strip_means(x)
            both = hardswish(self.bn1(self.conv1(torch.cat([rows, columns], 2))))
            first, second = both.split([x.shape[2], x.shape[3]], 2)
            heights = self.gain * self.conv_h(first).sigmoid()
            widths = self.conv_w(second).sigmoid()
        return multiply(x, heights[:, :, :, None] * widths[:, :, None, :])
