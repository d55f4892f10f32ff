"""Stochastic region pooling: the mean of random rectangles of a map."""

import torch
from torch import Tensor

from spem.kernels.reference import pool_mean, widen


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
    rows, columns = (
        _inside(maps, side, extent, generator).to(x.device)
        for side, extent in zip(sides, size, strict=True)
    )
    cover = (rows[..., :, None] & columns[..., None, :]).sum(0)
    return (widen(x) * cover).sum((2, 3)) / (regions * sides[0] * sides[1])


def _inside(
    maps: tuple[int, ...], side: int, extent: int, generator: torch.Generator | None
) -> Tensor:
    """Mark the positions of an axis that a random interval covers: bool (*maps, extent)."""
    device = None if generator is None else generator.device
    start = torch.randint(extent - side + 1, maps, generator=generator, device=device)[..., None]
    position = torch.arange(extent, device=start.device)
    return (position >= start) & (position < start + side)
