"""SA: half of a group of channels is weighed by its means, half by its positions, then shuffled."""

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from spem._messages import shorten
from spem._schema import is_whole
from spem.functional import Pooled
from spem.gates.attention import refuse_identity
from spem.gates.gate import present
from spem.gates.layers import GroupNorm
from spem.gates.position import Logits, PositionGate
from spem.kernels.memory_format import make_dense
from spem.kernels.reference import pool_mean, upcast


class SA(PositionGate):
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

    traceable = True
    normalises = True
    permutes = True
    statistics = ("mean", "var")

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

    def logits(self, pooled: Pooled) -> Logits:
        """Return slope and offset, where the slope of the first halves is 0, and None."""
        grouped = (self.groups, 2, -1)
        means, second = present(pooled.mean).unflatten(1, grouped).unbind(2)
        _, var = present(pooled.var).unflatten(1, grouped).unbind(2)
        scale = (var + self.gn.eps).rsqrt() * self.gn.weight
        slope = self.sweight * scale
        offset = self.sweight * (self.gn.bias - second * scale) + self.sbias
        slopes = torch.stack([torch.zeros_like(slope), slope], 2).flatten(1)
        offsets = torch.stack([self.cweight * means + self.cbias, offset], 2).flatten(1)
        return slopes, offsets, None

    def weigh(self, x: Tensor) -> Tensor:
        """See `PositionGate.weigh`."""
        x = make_dense(x)
        cweight, cbias, sweight, sbias = (
            upcast(t) for t in (self.cweight, self.cbias, self.sweight, self.sbias)
        )
        width = len(cweight)
        first, second = upcast(x).reshape(-1, 2 * width, *x.shape[2:]).chunk(2, 1)
        channel = (cweight * pool_mean(first) + cbias).sigmoid()[:, :, None, None]
        weight, bias = sweight * upcast(self.gn.weight), sweight * upcast(self.gn.bias) + sbias
        places = group_norm(second, width, weight, bias, self.gn.eps).sigmoid_()
        mixed = torch.cat([first * channel, second * places], 1).view(x.shape)
        return _interleave(mixed.to(x.dtype), not x.is_contiguous())

    def permute(self, x: Tensor) -> Tensor:
        """Return x with its channels interleaved."""
        return _interleave(x, not x.is_contiguous())


def _interleave(x: Tensor, last: bool) -> Tensor:
    """Return x, (N, C, H, W), with its halves of channels interleaved, in NHWC if `last`."""
    halves = x.unflatten(1, (2, -1))
    if last:
        return halves.permute(0, 3, 4, 2, 1).flatten(3).movedim(3, 1)
    return halves.transpose(1, 2).flatten(1, 2)
