"""BAM: a channel and a spatial branch, multiplied, between the stages of a network."""

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_whole, sizes_are_known
from spem.gates.attention import Attention, multiply
from spem.gates.gate import hidden_width
from spem.gates.layers import BatchNorm1d, BatchNorm2d, Conv2d, Linear
from spem.kernels.reference import pool_mean, upcast


class BAM(Attention):
    """Bottleneck Attention Module.

    Channels: c = L₂·relu(BN(L₁·GAP(x) + b₁)) + b₂, BN over the images of the batch. Places:
    s = conv1×1(B(B(relu(BN(conv1×1(x)))))) with B = relu(BN(conv3×3 of dilation 4)), of width
    R = C // reduction. y = x·(1 + σ(c·s)). 3CR + 18R² + 13R + C + 1 parameters.

    Args:
        channels: C.
        reduction: r.
        dilation: of the 3×3 convolutions.
        fuse: "product" of c and s, as the authors' code, or their "sum", as their paper.
        window: "gap", the mean of all positions, or "square", that of the leftmost H×H positions,
            which is what the authors' code takes; they differ on maps that are wider than high.
        init: "paper", PyTorch's layers (factor about 1.5), or "identity" (both branches
            end at 0, gain 2/3).

    Raises:
        ValueError: an option is unknown or out of range; in training, a single image; a map that is
            higher than wide with window="square".

    Source: Park, Woo, Lee and Kweon, "BAM: Bottleneck Attention Module", BMVC 2018 (arXiv
        1807.06514).
    """

    placement = "between-stages"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        fuse: str = "product",
        window: str = "gap",
        init: str = "paper",
    ):
        super().__init__(channels, init)
        width = hidden_width(channels, reduction)
        check_whole("dilation", dilation, most=64)
        check_choice("fuse of BAM", fuse, ("product", "sum"))
        check_choice("window of BAM", window, ("gap", "square"))
        self.fuse, self.window = fuse, window
        self.channel = nn.Sequential(
            Linear(channels, width), BatchNorm1d(width), nn.ReLU(), Linear(width, channels)
        )
        self.spatial = nn.Sequential(
            *_convolution(channels, width, 1),
            *_convolution(width, width, 3, dilation),
            *_convolution(width, width, 3, dilation),
            Conv2d(width, 1, 1),
        )
        if init == "identity":
            self.start_at_identity(2 / 3, self.channel[3], self.spatial[9])

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for, or does not fit.
        """
        self.check_map(x)
        self._check_batch(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            square = wide[..., : x.shape[2]] if self.window == "square" else wide
            channel = self.channel(pool_mean(square))[:, :, None, None]
            places = self.spatial(wide)
            both = channel * places if self.fuse == "product" else channel + places
            multiplier = self.gain * (1 + both.sigmoid())
        return multiply(x, multiplier)

    def _check_batch(self, x: Tensor) -> None:
        if not sizes_are_known(x):
            return
        if x.shape[0] == 1 and self.channel[1].training:
            raise ValueError("BAM normalises over the batch: training needs at least 2 images")
        if self.window == "square" and x.shape[3] < x.shape[2]:
            raise ValueError(
                f"x is {tuple(x.shape)}: window='square' needs maps that are not higher than wide"
            )


def _convolution(
    in_channels: int, channels: int, size: int, dilation: int = 1
) -> tuple[nn.Module, ...]:
    padding = dilation * (size // 2)
    conv = Conv2d(in_channels, channels, size, padding=padding, dilation=dilation)
    return conv, BatchNorm2d(channels), nn.ReLU()
