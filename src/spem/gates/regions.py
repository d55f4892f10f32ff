"""The means of rectangles of a feature map: of the bins of a grid, and of random regions."""

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from spem._checks import check_switch, check_whole, is_number
from spem._messages import shorten
from spem.functional import Pooled
from spem.gates.gate import Gate
from spem.kernels.reference import pool_mean, upcast
from spem.kernels.tracing import is_exported


class Regions(TypedDict, total=False):
    """The options of random regions, which every `DescriptorGate` takes by keyword."""

    rho: float | None
    regions: int
    per_channel: bool


class RegionGate(Gate):
    """A gate that with pool="srp" reads the mean of random regions in training.

    In evaluation, and with any other pool, it is a `Gate`.

    Args:
        channels: C.
        pool: "srp", or any other name, which leaves the options below no meaning.
        rho: side of a region as a fraction of the feature map's, in (0, 1]; it has no default. The
            sides are max(1, round(rho·H)) and max(1, round(rho·W)), the corners uniform.
        regions: number of regions, at most 1000, whose means are averaged: positions that
            several of them cover count as often.
        per_channel: whether every channel draws its own regions; else all share an image's.
        init: see `Attention`.

    Attributes:
        generator: the `torch.Generator` that regions are drawn from; None for torch's global one.

    Raises:
        ValueError: an option is out of range, or stands beside another pool.

    Source: Luo et al., 2019, see `SRP`.
    """

    def __init__(
        self,
        channels: int,
        *,
        pool: str = "avg",
        rho: float | None = None,
        regions: int = 1,
        per_channel: bool = False,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        if (rho is None) == (pool == "srp"):
            raise ValueError(
                f"rho is {shorten(rho)} with pool={shorten(pool)}: pool='srp' needs it, no other"
                " has it"
            )
        if rho is not None and not (is_number(rho) and 0 < rho <= 1):
            raise ValueError(f"rho is {shorten(rho)}, must lie in (0, 1]")
        check_switch("per_channel", per_channel)
        check_whole("regions", regions, most=1000)
        if rho is None and (regions != 1 or per_channel):
            raise ValueError(
                f"regions and per_channel belong to pool='srp', not to pool={shorten(pool)}"
            )
        self.rho, self.regions, self.per_channel = rho, regions, per_channel
        self.generator: torch.Generator | None = None

    @property
    def reads_statistics_only(self) -> bool:
        """Whether the mean is that of all positions now."""
        return self.rho is None or not self.training

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the pooled values of x, with the mean of random regions in training.

        Raises:
            ValueError: training is traced or exported.
        """
        if self.rho is None or not self.training:
            return super().pool_map(x)
        if is_exported():
            raise ValueError(
                "pool='srp' draws regions in training, and a trace would keep the sizes of its"
                " example: call eval() before"
            )
        n, c, *size = x.shape
        sides = [max(1, round(self.rho * extent)) for extent in size]
        if sides == size:
            return Pooled(pool_mean(x), None, None, None, size[0] * size[1])
        maps = (self.regions, n, c if self.per_channel else 1, 1)
        device = x.device if self.generator is None else self.generator.device
        inside = []
        for side, extent in zip(sides, size, strict=True):
            start = torch.randint(extent - side + 1, maps, generator=self.generator, device=device)
            after = torch.arange(extent, device=x.device) - start.to(x.device)
            inside.append((after >= 0) & (after < side))
        rows, columns = inside
        cover = (rows[..., :, None] & columns[..., None, :]).sum(0)
        mean = (upcast(x) * cover).sum((2, 3)) / (self.regions * sides[0] * sides[1])
        return Pooled(mean, None, None, None, size[0] * size[1])


def bin_means(x: Tensor, side: int) -> Tensor:
    """Pool maps to side × side by adaptive averages, (N, C, H, W) -> (N, C, side, side).

    Bin i of an axis of length L covers the positions from ⌊iL/side⌋ up to ⌈(i+1)L/side⌉.
    """
    # The backward pass of PyTorch's own is not deterministic on CUDA; that of products is.
    # Exporters write the bins of their example in its place.
    if not (torch.are_deterministic_algorithms_enabled() or is_exported()):
        return adaptive_avg_pool2d(x, side)
    rows, columns = (_bins(side, extent, x) for extent in x.shape[2:])
    return rows @ (x @ columns.t())


def _bins(count: int, length: int, x: Tensor) -> Tensor:
    """Return the weights (count, length) by which the bins of an axis average it."""
    i = torch.arange(count, device=x.device)[:, None]
    first, past = i * length // count, ((i + 1) * length + count - 1) // count
    position = torch.arange(length, device=x.device)
    return ((position >= first) & (position < past)).to(x.dtype) / (past - first)
