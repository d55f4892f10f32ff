"""SRP: squeeze-and-excitation on the mean of random regions."""

from typing import Any

from spem.gates.se import SE


class SRP(SE):
    """Squeeze-and-Excitation on the descriptor of Stochastic Region Pooling.

    In training the descriptor is the mean of random rectangles of the feature map, in evaluation
    the mean of all positions. It is `SE` with pool="srp", an option that other gates have as well.

    Only the idea of the paper could be read: shapes, sizes and sampling of the regions here are
    this library's definitions, and no parity is claimed.

    Args:
        channels: C.
        rho: side of a region as a fraction of the feature map's, in (0, 1]; 1 equals the mean.
        regions: number of regions, whose means are averaged.
        per_channel: whether every channel draws its own regions; else all share an image's.
        reduction, bias, init: see `SE`.

    Raises:
        ValueError: an option is out of range.

    Source: Luo et al., "Stochastic Region Pooling: Make Attention More Expressive", 2019 (arXiv
        1904.09853).
    """

    def __init__(
        self,
        channels: int,
        *,
        rho: float,
        regions: int = 1,
        per_channel: bool = False,
        reduction: int = 16,
        bias: bool = True,
        init: str = "paper",
    ):
        own: Any = {"rho": rho, "regions": regions, "per_channel": per_channel}
        super().__init__(channels, reduction=reduction, bias=bias, init=init, pool="srp", **own)
