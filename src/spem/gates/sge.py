"""SGE: each position of a group of channels is weighed by its likeness to the group's mean."""

import torch
from torch import Tensor, nn

from spem._checks import check_finite
from spem._messages import shorten
from spem._schema import is_whole
from spem.functional import count_positions
from spem.gates.attention import Attention, multiply
from spem.gates.gate import degrees_of_freedom
from spem.kernels.reference import pool_mean, upcast


class SGE(Attention):
    """Spatial Group-wise Enhance.

    In each of G groups of consecutive channels, with μᵢ the means of its channels:
    s(h,w) = Σ μᵢ·xᵢ(h,w), centred and divided by its unbiased deviation + eps over the positions;
    the multiplier of the group at (h,w) is σ(a·s + b). 2G parameters.

    A feature map of a single position has no unbiased deviation: the authors' code returns NaN;
    here s is 0 there.

    Args:
        channels: C.
        groups: G, a divisor of C. The authors' 64 is meant for ImageNet's widths; at 64 channels it
            is one channel a group.
        eps: added to the deviation.
        init: "paper" (a = 0, b = 1, multiplier 0.731) or "identity" (b = 0, gain 2).

    Raises:
        ValueError: the groups do not divide the channels, or eps is negative.

    Source: Li, Hu and Yang, "Spatial Group-wise Enhance", 2019 (arXiv 1905.09646).
    """

    retired_options = ("parity",)

    def __init__(self, channels: int, *, groups: int = 64, eps: float = 1e-5, init: str = "paper"):
        super().__init__(channels, init)
        check_groups(groups, channels)
        check_finite("eps", eps)
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.zeros(groups))
        self.bias = nn.Parameter(torch.full((groups,), 1.0 if init == "paper" else 0.0))
        if init == "identity":
            self.gain.fill_(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        count = count_positions(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            likeness = (wide * pool_mean(wide)[:, :, None, None]).unflatten(1, (self.groups, -1))
            s = likeness.sum(2)
            s = s - s.mean((2, 3), keepdim=True)
            if isinstance(count, Tensor) or count > 1:
                length = torch.linalg.vector_norm(s, dim=(2, 3), keepdim=True)
                values = degrees_of_freedom(count)
                root = values.sqrt() if isinstance(values, Tensor) else torch.sym_sqrt(values)
                s = s / (length / root + self.eps)
            weight, bias = self.weight[:, None, None], self.bias[:, None, None]
            multiplier = self.gain * (weight * s + bias).sigmoid()
        return multiply(x, multiplier.repeat_interleave(self.channels // self.groups, 1))


def check_groups(groups: int, channels: int, name: str = "groups") -> None:
    """Raise ValueError unless a number of groups divides the channels; `name` is the option's."""
    if not is_whole(groups) or groups < 1 or channels % groups:
        raise ValueError(
            f"{name} is {shorten(groups)}, must be a divisor of the {channels} channels"
        )
