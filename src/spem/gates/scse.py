"""scSE: squeeze-and-excitation of the channels and of the positions side by side."""

import torch
from torch import Tensor

from spem._checks import check_choice
from spem.gates.attention import Attention, multiply
from spem.gates.gate import hidden_width
from spem.gates.layers import Conv2d, Linear
from spem.kernels.reference import pool_mean, upcast


class SCSE(Attention):
    """Concurrent spatial and channel squeeze-and-excitation.

    g = σ(L₂·relu(L₁·GAP(x) + b₁) + b₂), (N, C), with R = C // reduction hidden units;
    s = σ(w·x + b), (N, 1, H, W). fuse="max": y = max(x·g, x·s), element by element, which for
    negative x is the smaller multiplier; "sum": y = x·g + x·s. 2CR + R + 2C + 1 parameters.

    Args:
        channels: C, at least `reduction`.
        reduction: r; segmentation_models.pytorch has 16 and fuse="sum".
        fuse: "max" or "sum".
        init: "paper", PyTorch's layers (both about ½), or "identity" (the last layers at 0, gain 2
            with "max").

    Raises:
        ValueError: an option is unknown or out of range.

    Source: Roy, Navab and Wachinger, "Concurrent Spatial and Channel Squeeze & Excitation in Fully
        Convolutional Networks", MICCAI 2018 (arXiv 1803.02579).
    """

    def __init__(
        self, channels: int, *, reduction: int = 2, fuse: str = "max", init: str = "paper"
    ):
        super().__init__(channels, init)
        width = hidden_width(channels, reduction)
        check_choice("fuse of scSE", fuse, ("max", "sum"))
        self.fuse = fuse
        self.fc1 = Linear(channels, width)
        self.fc2 = Linear(width, channels)
        self.conv = Conv2d(channels, 1, 1)
        if init == "identity":
            self.start_at_identity(2 if fuse == "max" else 1, self.fc2, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            channel = self.fc2(self.fc1(pool_mean(wide)).relu()).sigmoid()[:, :, None, None]
            places = self.conv(wide).sigmoid()
            if self.fuse == "sum":
                return multiply(x, self.gain * (channel + places))
            # At ties, so wherever x is 0, the gradient is the mean of both, as in PyTorch's max.
            return (self.gain * torch.maximum(wide * channel, wide * places)).to(x.dtype)
