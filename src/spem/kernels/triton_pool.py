"""Mean, variance, extrema and their first positions of every map, in one read (Triton)."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels import triton_layout
from spem.kernels.triton_layout import dense, layout_of, origin, reading, tile, wide_dtypes

# Positions are below this; a position minus it says that the value there is not a number.
_FAR = tl.constexpr(2**30)
_MERGE_BLOCK = 128


class Moments(NamedTuple):
    """The moments of a batch of maps, each (N, C), float32 (float64 of float64 maps).

    `var` is biased. `argmax` and `argmin`, int32, are first positions in row-major order. Of a map
    that holds NaN, both extrema are NaN, at its first NaN. Extrema not asked for are None.
    """

    mean: Tensor
    var: Tensor
    max: Tensor | None
    min: Tensor | None
    argmax: Tensor | None
    argmin: Tensor | None


def pool(x: Tensor, extrema: bool) -> Moments:
    """Compute the moments of every map in one read.

    Args:
        x: (N, C, H, W), any strides; H·W from 1 to 2³⁰ − 1.
        extrema: whether to find maximum and minimum with their positions.

    Returns:
        The moments, each (N, C).
    """
    x = dense(x)
    shape = x.shape[:2]
    dtype, acc = wide_dtypes(x)
    statistics = 4 if extrema else 2
    values = triton_layout.empty((statistics, *shape), x, dtype)
    places = triton_layout.empty((2, *shape), x, torch.int32) if extrema else None
    if values.numel():
        _launch(x, values, places, acc)
    mean, var = values[0], values[1]
    if places is None:
        return Moments(mean, var, None, None, None, None)
    return Moments(mean, var, values[2], values[3], places[0], places[1])


def _launch(x: Tensor, values: Tensor, places: Tensor | None, acc: Any) -> None:
    layout = layout_of(x)
    plan = reading(layout, x.element_size())
    total = layout.groups * layout.maps
    split = plan.splits > 1
    into, into_places = values, places
    if split:
        into = triton_layout.empty((plan.splits, *values.shape), x, values.dtype)
        if places is not None:
            into_places = triton_layout.empty((plan.splits, *places.shape), x, places.dtype)
    _pool_kernel[(plan.programs,)](
        x,
        into,
        into_places,
        layout.maps,
        layout.positions,
        total,
        plan.iterations,
        plan.splits,
        SPLIT=split,
        BLOCK_M=plan.block_m,  # pyright: ignore[reportArgumentType]
        BLOCK_L=plan.block_l,  # pyright: ignore[reportArgumentType]
        CHANNELS_LAST=layout.channels_last,  # pyright: ignore[reportArgumentType]
        ACC=acc,
    )
    if split:
        _merge_kernel[(triton.cdiv(total, _MERGE_BLOCK),)](
            into,
            into_places,
            values,
            places,
            layout.positions,
            total,
            plan.iterations * plan.block_l,
            plan.splits,
            BLOCK=_MERGE_BLOCK,
            ACC=acc,
        )


@triton.jit
def _improve(best, place, value, at, mask, LARGEST: tl.constexpr):
    """Take over values that are better, and the first NaN of all; the earlier one keeps a tie."""
    better = value > best if LARGEST else value < best
    better = mask & (better | ((value != value) & (best == best)))
    return tl.where(better, value, best), tl.where(better, at, place)


@triton.jit
def _extremum(best, place, LARGEST: tl.constexpr):
    """Reduce lanes (BLOCK_M, BLOCK_L) to a map's extremum and its first position, (BLOCK_M,)."""
    nan = best != best
    if LARGEST:
        value = tl.max(tl.where(nan, -float("inf"), best), axis=1)
    else:
        value = tl.min(tl.where(nan, float("inf"), best), axis=1)
    holds = tl.where(best == value[:, None], place, _FAR)
    # A reduction by value and position at once would lose NaN and cost as many exchanges.
    first = tl.min(tl.where(nan, place - _FAR, holds), axis=1)
    return tl.where(first < 0, float("nan"), value), tl.where(first < 0, first + _FAR, first)


@triton.jit
def _pool_kernel(
    x,
    values,
    places,
    maps,
    positions,
    total,
    iterations,
    splits,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
):
    """Each lane follows Welford over its own positions; the lanes are merged once, at the end.

    values: (splits, 4 or 2, total): mean, variance (sum of squares where split), max, min.
    places: (splits, 2, total), or None: no extrema.
    """
    group, block, split = origin(maps, splits, BLOCK_M, CHANNELS_LAST)
    start = split * iterations * BLOCK_L
    base, offsets = tile(
        group, block * BLOCK_M, start, maps, positions, BLOCK_M, BLOCK_L, CHANNELS_LAST
    )
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = start + tl.arange(0, BLOCK_L)[None, :]
    exists = (m < maps)[:, None]
    step = tl.cast(BLOCK_L, tl.int64) * (maps if CHANNELS_LAST else 1)
    pointers = x + base + offsets

    mean = tl.zeros((BLOCK_M, BLOCK_L), ACC)
    squares = tl.zeros((BLOCK_M, BLOCK_L), ACC)
    # A lane without a better value answers for its first position.
    highest = tl.full((BLOCK_M, BLOCK_L), -float("inf"), ACC)
    lowest = tl.full((BLOCK_M, BLOCK_L), float("inf"), ACC)
    at_highest = lane + tl.zeros((BLOCK_M, BLOCK_L), tl.int32)
    at_lowest = at_highest

    ahead = tl.load(pointers, exists & (lane < positions), other=0)
    for i in range(iterations):
        value = ahead.to(ACC)
        at = lane + i * BLOCK_L
        mask = exists & (at < positions)
        # The next tile is on its way while this one is worked on.
        pointers += step
        more = exists & (at + BLOCK_L < positions) & (i + 1 < iterations)
        ahead = tl.load(pointers, more, other=0)
        delta = tl.where(mask, value - mean, 0)
        # Lanes that exist have all seen the same number of values.
        mean += delta * (1 / tl.cast(i + 1, ACC))
        squares += delta * (value - mean)
        if places is not None:
            highest, at_highest = _improve(highest, at_highest, value, at, mask, True)
            lowest, at_lowest = _improve(lowest, at_lowest, value, at, mask, False)

    index = group * maps + m
    stored = m < maps
    row = tl.cast(split, tl.int64) * total
    count = tl.cast(tl.minimum(positions - start, iterations * BLOCK_L), ACC)
    seen = tl.minimum(tl.maximum(tl.cdiv(positions - lane, BLOCK_L), 0), iterations).to(ACC)
    average = tl.sum(seen * mean, axis=1) / count
    # A lane that saw nothing has mean 0 and weight 0.
    distance = mean - average[:, None]
    spread = tl.sum(squares + seen * distance * distance, axis=1)
    statistics = 2 if places is None else 4
    into = values + row * statistics + index
    tl.store(into, average, stored)
    tl.store(into + total, spread if SPLIT else spread / count, stored)
    if places is not None:
        high, high_at = _extremum(highest, at_highest, True)
        low, low_at = _extremum(lowest, at_lowest, False)
        tl.store(into + 2 * tl.cast(total, tl.int64), high, stored)
        tl.store(into + 3 * tl.cast(total, tl.int64), low, stored)
        into_places = places + row * 2 + index
        tl.store(into_places, high_at, stored)
        tl.store(into_places + total, low_at, stored)


@triton.jit
def _merge_kernel(
    partial,
    partial_places,
    values,
    places,
    positions,
    total,
    length,
    splits,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Merge the splits of each map in their order, by the formula of Chan, Golub and LeVeque.

    partial: (splits, 4 or 2, total), partial_places: (splits, 2, total); all but the last split
    cover `length` positions.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = index < total
    wide = tl.cast(total, tl.int64)
    statistics = 2 if places is None else 4
    mean = tl.zeros((BLOCK,), ACC)
    spread = tl.zeros((BLOCK,), ACC)
    highest = tl.full((BLOCK,), -float("inf"), ACC)
    lowest = tl.full((BLOCK,), float("inf"), ACC)
    at_highest = tl.zeros((BLOCK,), tl.int32)
    at_lowest = tl.zeros((BLOCK,), tl.int32)
    for i in range(splits):
        source = partial + i * wide * statistics + index
        seen = tl.cast(i * length, ACC)
        count = tl.cast(tl.minimum(positions - i * length, length), ACC)
        delta = tl.load(source, exists, other=0) - mean
        mean += delta * (count / (seen + count))
        spread += tl.load(source + wide, exists, other=0)
        spread += delta * delta * (seen * count / (seen + count))
        if places is not None:
            source_places = partial_places + i * wide * 2 + index
            high = tl.load(source + 2 * wide, exists, other=0)
            high_at = tl.load(source_places, exists, other=0)
            highest, at_highest = _improve(highest, at_highest, high, high_at, exists, True)
            low = tl.load(source + 3 * wide, exists, other=0)
            low_at = tl.load(source_places + wide, exists, other=0)
            lowest, at_lowest = _improve(lowest, at_lowest, low, low_at, exists, False)
    tl.store(values + index, mean, exists)
    tl.store(values + wide + index, spread / tl.cast(positions, ACC), exists)
    if places is not None:
        tl.store(values + 2 * wide + index, highest, exists)
        tl.store(values + 3 * wide + index, lowest, exists)
        tl.store(places + index, at_highest, exists)
        tl.store(places + wide + index, at_lowest, exists)
