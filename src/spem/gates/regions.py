"""The means of rectangles of a map: of the bins of a grid, and of random regions."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from spem.kernels.reference import pool_mean, upcast


def bin_means(x: Tensor, side: int) -> Tensor:
    """Pool maps to side × side by adaptive averages, (N, C, H, W) -> (N, C, side, side).

    Bin i of an axis of length L covers the positions from ⌊iL/side⌋ up to ⌈(i+1)L/side⌉.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return adaptive_avg_pool2d(x, side)
    # The backward pass of PyTorch's own is not deterministic on CUDA; that of products is.
    rows, columns = (_bins(side, extent, x) for extent in x.shape[2:])
    return rows @ (x @ columns.t())


def _bins(count: int, length: int, x: Tensor) -> Tensor:
    """Return the weights (count, length) by which the bins of an axis average it."""
    i = torch.arange(count, device=x.device)[:, None]
    first, past = i * length // count, -(-(i + 1) * length // count)
    position = torch.arange(length, device=x.device)
    return ((position >= first) & (position < past)).to(x.dtype) / (past - first)


def region_mean(
    x: Tensor, rho: float, regions: int, per_channel: bool, generator: torch.Generator | None
) -> Tensor:
    """Return the average of the means of random regions of each map, (N, C).

    Args:
        x: (N, C, H, W).
        rho: the sides of a region are max(1, round(rho·H)) and max(1, round(rho·W)).
        regions: K; positions that several of them cover count as often.
        per_channel: whether each channel draws its own regions; else each image does.
        generator: what the corners are drawn from, uniformly; None for torch's global generator.
    """
    n, c, *size = x.shape
    sides = [max(1, round(rho * extent)) for extent in size]
    if sides == size:
        return pool_mean(x)
    maps = (regions, n, c if per_channel else 1)
    device = x.device if generator is None else generator.device
    rows, columns = (
        _inside(maps, side, extent, generator, device).to(x.device)
        for side, extent in zip(sides, size, strict=True)
    )
    cover = (rows[..., :, None] & columns[..., None, :]).sum(0)
    return (upcast(x) * cover).sum((2, 3)) / (regions * sides[0] * sides[1])


def _inside(
    maps: tuple[int, ...],
    side: int,
    extent: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Mark the positions of an axis that a random interval covers: bool (*maps, extent)."""
    start = torch.randint(extent - side + 1, maps, generator=generator, device=device)[..., None]
    position = torch.arange(extent, device=device)
    return (position >= start) & (position < start + side)
