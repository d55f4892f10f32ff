"""Triplet attention: CBAM's spatial attention of the three pairs of axes."""

import torch
from torch import Tensor, nn

from spem._checks import check_normalises, check_odd, check_switch
from spem.gates.attention import Attention, multiply
from spem.gates.layers import BatchNorm2d, Conv2d
from spem.kernels.reference import upcast


class Triplet(Attention):
    """Triplet Attention.

    G(T) = σ(BN(conv([max; mean] over the second axis of T))), the convolution k×k, 2 -> 1, without
    bias. The plane of G is (C, W) for the rows, (H, C) for the columns, (H, W) for the channels,
    each with weights of its own: y = (x·G₁ + x·G₂ + x·G₃)/3, without the spatial gate G₃
    (x·G₁ + x·G₂)/2. 3·(2k² + 2) parameters, whatever C is.

    Args:
        channels: C.
        kernel_size: k, odd, at most 999.
        spatial: False leaves G₃ out.
        init: "paper", PyTorch's layers (multiplier about ½), or "identity" (norms at 0, gain 2).

    Raises:
        ValueError: an option is out of range; training with a single value to normalise.

    Source: Misra, Nalamada, Arasanipalai and Hou, "Rotate to Attend: Convolutional Triplet
        Attention Module", WACV 2021 (arXiv 2010.03045).
    """

    def __init__(
        self, channels: int, *, kernel_size: int = 7, spatial: bool = True, init: str = "paper"
    ):
        super().__init__(channels, init)
        check_odd("kernel_size", kernel_size)
        check_switch("spatial", spatial)
        self.cw = _Plane(kernel_size)
        self.hc = _Plane(kernel_size)
        self.hw = _Plane(kernel_size) if spatial else None
        if init == "identity":
            planes = (plane for plane in (self.cw, self.hc, self.hw) if plane is not None)
            self.start_at_identity(2, *(plane.bn for plane in planes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        check_normalises("Triplet", self, x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            # The kernel's rows are the channels, then the rows of the map, then again its rows.
            gates = [
                self.cw(wide.transpose(1, 2)).transpose(1, 2),
                self.hc(wide.permute(0, 3, 2, 1)).permute(0, 3, 2, 1),
            ]
            if self.hw is not None:
                gates.append(self.hw(wide))
            multiplier = self.gain * (sum(gates[1:], gates[0]) / len(gates))
        return multiply(x, multiplier)


class _Plane(nn.Module):
    def __init__(self, kernel_size: int):
        super().__init__()
        self.conv = Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        # Not amax: the gradient of tied values goes to the first.
        both = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
        return self.bn(self.conv(both)).sigmoid()
