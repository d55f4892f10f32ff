"""LCT: the means of a group of channels, normalised, then scaled and shifted one by one."""

from typing import Unpack

import torch
from torch import Tensor, nn

from spem._checks import check_finite
from spem.functional import Pooled
from spem.gates.pooling import DescriptorGate, Pooling
from spem.gates.sge import check_groups


class LCT(DescriptorGate):
    """Linear Context Transform.

    The descriptor u, by default the means of the channels, is normalised in each of G groups of
    consecutive channels, û = (u − mean)/√(var + eps) with the biased variance; multiplier
    σ(w·û + b). With one channel a group û is 0. 2C parameters.

    Args:
        channels: C.
        groups: G, a divisor of C.
        eps: added to the variance.
        init: "paper" (w = 1, b = 0, that of public implementations: which start the authors use was
            not found) or "identity" (w = 0, gain 2).
        **pooling: the descriptor, see `DescriptorGate`.

    Raises:
        ValueError: the groups do not divide the channels, eps is negative, or a pooling option is
            not allowed.

    Source: Ruan, Wen, Zheng and Zheng, "Linear Context Transform Block", AAAI 2020 (arXiv
        1909.03834). No code of the authors was found.
    """

    traceable = True

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 16,
        eps: float = 1e-5,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        check_groups(groups, channels)
        check_finite("eps", eps)
        self.groups, self.eps = groups, eps
        self.w = nn.Parameter(torch.ones(channels))
        self.b = nn.Parameter(torch.zeros(channels))
        if init == "identity":
            self.gain.fill_(2)
            nn.init.zeros_(self.w)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        grouped = self.descriptor(pooled).unflatten(1, (self.groups, -1))
        centred = grouped - grouped.mean(2, keepdim=True)
        root = (centred.square().mean(2, keepdim=True) + self.eps).rsqrt()
        return (self.w * (centred * root).flatten(1) + self.b).sigmoid()
