"""ECA: a short convolution across the channels."""

import math
from typing import Unpack

from torch import Tensor, nn

from spem._checks import check_odd
from spem.functional import Pooled
from spem.gates.layers import Conv1d
from spem.gates.pooling import DescriptorGate, Pooling


class ECA(DescriptorGate):
    """Efficient Channel Attention.

    With the descriptor u (the mean by default): multiplier σ(ω ∗ u), a cross-correlation along the
    channels with one zero-padded kernel ω of odd size k, without bias. k parameters.

    Args:
        channels: C.
        kernel_size: k, odd, at most 999; None for the authors' rule: t = ⌊|(log₂ C + 1) / 2|⌋,
            k = t or t + 1.
        init: "paper", PyTorch's convolution, or "identity", ω = 0 and gain 2.
        **pooling: the descriptor u, see `DescriptorGate`.

    Raises:
        ValueError: the kernel is even or below 1, or a pooling option is not allowed.

    Source: Wang et al., "ECA-Net", CVPR 2020 (arXiv 1910.03151).
    """

    traceable = True

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        self.conv = channel_conv(channels, kernel_size)
        if init == "identity":
            self.start_at_identity(2, self.conv)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        return self.conv(self.descriptor(pooled)[:, None]).squeeze(1).sigmoid()


def channel_conv(channels: int, kernel_size: int | None) -> nn.Conv1d:
    """Return ECA's convolution along the channels; its size follows from them where it is None."""
    if kernel_size is None:
        size = int(abs((math.log2(channels) + 1) / 2))
        kernel_size = size if size % 2 else size + 1
    check_odd("kernel_size", kernel_size)
    return Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
