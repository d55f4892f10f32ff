"""SA: half of a group of channels is weighed by its means, half by its positions, then shuffled."""

import torch
from torch import Tensor, nn

from spem._messages import shorten
from spem._schema import is_whole
from spem.gates.attention import Attention, refuse_identity
from spem.gates.layers import GroupNorm
from spem.kernels.memory_format import match_format
from spem.kernels.reference import pool_mean, upcast


class SA(Attention):
    """Shuffle Attention.

    C is cut into G groups of 2k consecutive channels, which share all parameters. The first half X₀
    of a group becomes X₀·σ(c_w·GAP(X₀) + c_b), the second X₁·σ(s_w·GN(X₁) + s_b), GN each channel
    by itself. Then the channels are interleaved: the output's channel 2i + s is channel s·C/2 + i
    of the result. 6k parameters with k = C/(2G).

    The output's channels are permuted, which a shortcut beside the gate is not.

    Args:
        channels: C.
        groups: G; 2G must divide C.
        init: "paper" (weights 0, biases 1: multiplier 0.731 and the permutation); because of the
            permutation there is no start at the identity.

    Raises:
        ValueError: the groups do not fit the channels, or init is "identity".

    Source: Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks",
        ICASSP 2021 (arXiv 2102.00240). The authors' 64 groups are meant for ImageNet's widths.
    """

    family = "quadratic"

    def __init__(self, channels: int, *, groups: int = 64, init: str = "paper"):
        super().__init__(channels, init)
        refuse_identity("SA", init, "it permutes the channels")
        if not is_whole(groups) or groups < 1 or channels % (2 * groups):
            raise ValueError(
                f"groups is {shorten(groups)}, must be a number whose double divides the {channels}"
                " channels"
            )
        self.groups, width = groups, channels // (2 * groups)
        self.cweight = nn.Parameter(torch.zeros(width))
        self.cbias = nn.Parameter(torch.ones(width))
        self.sweight = nn.Parameter(torch.zeros(width))
        self.sbias = nn.Parameter(torch.ones(width))
        self.gn = GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map with its channels interleaved, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            halves = upcast(x).unflatten(1, (self.groups, 2, -1))
            first, second = (half.flatten(0, 1) for half in halves.unbind(2))
            means = pool_mean(first)[:, :, None, None]
            channel = (self._spread(self.cweight) * means + self._spread(self.cbias)).sigmoid()
            places = self._spread(self.sweight) * self.gn(second) + self._spread(self.sbias)
            gated = torch.stack([first * channel, second * places.sigmoid()], 1)
            mixed = gated.unflatten(0, (-1, self.groups)).flatten(1, 3)
        shuffled = mixed.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return match_format(shuffled.to(x.dtype), x)

    def _spread(self, parameter: Tensor) -> Tensor:
        return upcast(parameter)[:, None, None]
