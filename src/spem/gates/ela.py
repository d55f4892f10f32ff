"""ELA: a multiplier of each row and each column from a short convolution along it."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from spem._checks import check_finite, check_odd, check_switch
from spem.gates.attention import Attention, multiply
from spem.gates.layers import Conv1d, GroupNorm
from spem.gates.strips import strip_means


class ELA(Attention):
    """Efficient Local Attention, in the form of timm.

    With h (N, C, H) and w (N, C, W) the means of the rows and of the columns, each has a k-tap
    depthwise convolution and a norm over all its values: A = σ(silu(GN₁(conv_h(h)))), B likewise;
    y = x·A·B, with `skip` x·A·B + x. 2kC + 4C parameters.

    Args:
        channels: C.
        kernel_size: k, odd, at most 999.
        skip: whether x is added.
        eps: of the norms.
        init: "paper", PyTorch's layers (A·B about 0.29), or "identity" (the scales of the norms at
            0, so A·B = ¼, gain 4, with `skip` 0.8).

    Raises:
        ValueError: an option is out of range.

    Source: "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", 2024 (arXiv
        2403.01123). No code of the authors was found.
    """

    family = "strips"

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        skip: bool = False,
        eps: float = 1e-5,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_odd("kernel_size", kernel_size)
        check_switch("skip", skip)
        check_finite("eps", eps)
        self.skip = skip
        self.conv_h, self.conv_w = (
            Conv1d(
                channels,
                channels,
                kernel_size,
                padding=kernel_size // 2,
                groups=channels,
                bias=False,
            )
            for _ in range(2)
        )
        self.norm_h, self.norm_w = (GroupNorm(1, channels, eps) for _ in range(2))
        if init == "identity":
            self.start_at_identity(0.8 if skip else 4, self.norm_h, self.norm_w)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = strip_means(x)
            heights = silu(self.norm_h(self.conv_h(rows))).sigmoid()[:, :, :, None]
            widths = silu(self.norm_w(self.conv_w(columns))).sigmoid()[:, :, None, :]
            multiplier = self.gain * (heights * widths + (1 if self.skip else 0))
        return multiply(x, multiplier)
