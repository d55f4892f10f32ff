"""Mean, variance, extrema and their first positions of every map, in one read (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's, as is host-side arithmetic.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels import triton_layout
from spem.kernels.triton_layout import Layout, dense, layout_of, origin, tile, wide_dtypes

# Positions are below this; a position minus it says that the value there is not a number.
_FAR = tl.constexpr(2**30)
_MERGE_BLOCK = 128


class Moments(NamedTuple):
    """The moments of a batch of maps, each (N, C), float32 (float64 of float64 maps).

    `var` is biased. `argmax` and `argmin`, int32, are first positions in row-major order. Where a
    map holds NaN, both extrema are NaN, and their positions are any of the map's. Extrema not
    asked for are None.
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
    return moments(pool_stack(x, extrema))


def moments(stack: Tensor) -> Moments:
    """Return the moments in what `pool_stack` returned."""
    if len(stack) == 2:
        return Moments(stack[0], stack[1], None, None, None, None)
    largest, smallest = _places(stack)
    return Moments(stack[0], stack[1], stack[2], stack[3], largest, smallest)


def pool_stack(x: Tensor, extrema: bool) -> Tensor:
    """Compute the moments of every map in one read; see `pool`.

    Returns:
        (2, N, C), mean and variance; with extrema (7, N, C): maximum, minimum, the bits of their
        positions as integers of the same width, and the value at position 0, too.
    """
    x = dense(x)
    dtype, acc = wide_dtypes(x)
    stack = triton_layout.empty((7 if extrema else 2, *x.shape[:2]), x, dtype)
    if stack.numel():
        _launch(x, stack, _places(stack) if extrema else None, acc)
    return stack


def _places(stack: Tensor) -> Tensor:
    """Return the positions of the extrema, (2, N, C), in what `pool_stack` returns."""
    return stack[4:6].view(torch.int64 if stack.dtype == torch.float64 else torch.int32)


class _Plan(NamedTuple):
    """How the kernel is launched: `splits` programs share a map, each takes `length` positions."""

    programs: int
    splits: int
    length: int
    constants: dict[str, Any]


# Warps that fill any device of today. A constant, not a property of the device: the same sums are
# formed everywhere.
_ENOUGH_WARPS = 2048
# However many share a map, each lane has at least this many turns.
_FEWEST_TURNS = 8
_MOST_WARPS = 16
# Tiles that are on their way at once.
_UNROLL = 4
# Bytes of a lane's vector, and of a row of channels that a program reads.
_VECTOR = 16
_ROW = 128


@lru_cache(maxsize=1024)
def _plan(layout: Layout, itemsize: int) -> _Plan:
    """Choose tiles of one vector a lane, and how many lanes share a map.

    Too few lanes do not fill the device, too many have little to do before they are merged. Where
    maps are so few that even the largest programs do not fill it, several programs share each,
    whose partial results a second stage merges in order: atomics would add in another order at
    every run.
    """
    last, groups, maps, positions = layout
    vector = _VECTOR // itemsize
    if last:
        block_m = min(triton.next_power_of_2(maps), _ROW // itemsize)
        warps, rows = 1, max(1, 32 * vector // block_m)
        programs = groups * triton.cdiv(maps, block_m)
        while (
            warps < _MOST_WARPS
            and programs * warps < _ENOUGH_WARPS
            and 2 * rows * warps * _FEWEST_TURNS <= positions
        ):
            warps *= 2
        block_l = min(rows * warps, triton.next_power_of_2(positions))
    else:
        warps = 4
        block_l = min(triton.next_power_of_2(positions), 32 * vector)
        block_m = min(triton.next_power_of_2(maps), 32 * vector * warps // block_l)
        programs = triton.cdiv(maps, block_m)
    turns = triton.cdiv(positions, block_l)
    splits = max(1, min(_ENOUGH_WARPS // (programs * warps), turns // _FEWEST_TURNS))
    unroll = min(_UNROLL, triton.next_power_of_2(triton.cdiv(turns, splits)))
    length = triton.cdiv(turns, splits * unroll) * unroll * block_l
    # Rounding up may leave the last programs without a position: they are not started.
    splits = triton.cdiv(positions, length)
    constants = {
        "BLOCK_M": block_m,
        "BLOCK_L": block_l,
        "UNROLL": unroll,
        "CHANNELS_LAST": last,
        "EVEN": maps % block_m == 0,
        "num_warps": warps,
    }
    return _Plan(programs * splits, splits, length, constants)


def _launch(x: Tensor, values: Tensor, places: Tensor | None, acc: Any) -> None:
    layout = layout_of(x)
    plan = _plan(layout, x.element_size())
    total = layout.groups * layout.maps
    split = plan.splits > 1
    into, into_places = values, places
    if split:
        statistics = 2 if places is None else 4
        into = triton_layout.empty((plan.splits, statistics, total), x, values.dtype)
        if places is not None:
            into_places = triton_layout.empty((plan.splits, 2, total), x, places.dtype)
    _pool_kernel[(plan.programs,)](
        x,
        into,
        into_places,
        None if places is None else values[6],
        layout.maps,
        layout.positions,
        total,
        plan.length,
        plan.splits,
        SPLIT=split,
        ACC=acc,
        **plan.constants,
    )
    if split:
        _merge_kernel[(triton.cdiv(total, _MERGE_BLOCK),)](
            into,
            into_places,
            values,
            places,
            layout.positions,
            total,
            plan.length,
            plan.splits,
            BLOCK=_MERGE_BLOCK,
            ACC=acc,
        )


@triton.jit
def _improve(best, turn, value, i, LARGEST: tl.constexpr):
    """Take over values that are better, and NaN for good; the earlier one keeps a tie."""
    if LARGEST:
        turn = tl.where(value > best, i, turn)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    else:
        turn = tl.where(value < best, i, turn)
        best = tl.minimum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, turn


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
def _follow(state, value, turn, mask, places):
    """Take one more value of each lane into its moments, by Welford's formulas.

    Args:
        state: mean, sum of squares, maximum and minimum with the turns in which they were met.
        value: of each lane.
        turn: how many values each lane has seen, but for those that are over.
        mask: which lanes have the value; None if all.
        places: None where no extrema are wanted.
    """
    mean, squares, highest, highest_turn, lowest, lowest_turn = state
    delta = value - mean
    high = value
    low = value
    if mask is not None:
        delta = tl.where(mask, delta, 0)
        high = tl.where(mask, value, -float("inf"))
        low = tl.where(mask, value, float("inf"))
    mean += delta * (1 / tl.cast(turn + 1, value.dtype))
    squares += delta * (value - mean)
    if places is not None:
        highest, highest_turn = _improve(highest, highest_turn, high, turn, True)
        lowest, lowest_turn = _improve(lowest, lowest_turn, low, turn, False)
    return mean, squares, highest, highest_turn, lowest, lowest_turn


@triton.jit
def _pool_kernel(
    x,
    values,
    places,
    firsts,
    maps,
    positions,
    total,
    length,
    splits,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    UNROLL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
):
    """Each lane follows its own positions, `BLOCK_L` apart; the lanes are merged once, at the end.

    values: (splits, 4 or 2, total): mean, variance (sum of squares where split), max, min.
    places: (splits, 2, total), or None: no extrema.
    firsts: (total,), the values at position 0, or None with `places`.
    """
    group, block, split = origin(maps, splits, BLOCK_M, CHANNELS_LAST)
    start = split * length
    base, offsets = tile(
        group, block * BLOCK_M, start, maps, positions, BLOCK_M, BLOCK_L, CHANNELS_LAST
    )
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = start + tl.arange(0, BLOCK_L)[None, :]
    exists = (m < maps)[:, None]
    step = tl.cast(BLOCK_L, tl.int64) * (maps if CHANNELS_LAST else 1)
    pointers = x + base + offsets

    zeros = tl.zeros((BLOCK_M, BLOCK_L), ACC)
    # The turn in which a lane met its extremum: 0 also where nothing is better than the start,
    # because all is infinite.
    never = tl.zeros((BLOCK_M, BLOCK_L), tl.int32)
    infinite = tl.full((BLOCK_M, BLOCK_L), float("inf"), ACC)
    state = zeros, zeros, -infinite, never, infinite, never

    covered = tl.minimum(positions - start, length)
    full = covered // (BLOCK_L * UNROLL) * UNROLL if EVEN else 0
    for turn in range(0, full, UNROLL):
        # Unrolled, all loads are on their way before the first value is worked on.
        for u in tl.static_range(UNROLL):
            value = tl.load(pointers).to(ACC)
            pointers += step
            state = _follow(state, value, turn + u, None, places)
    for turn in range(full, tl.cdiv(covered, BLOCK_L)):
        mask = exists & (lane + turn * BLOCK_L < positions)
        value = tl.load(pointers, mask, other=0).to(ACC)
        pointers += step
        state = _follow(state, value, turn, mask, places)
    mean, squares, highest, highest_turn, lowest, lowest_turn = state

    index = group * maps + m
    stored = m < maps
    row = tl.cast(split, tl.int64) * total
    count = tl.cast(covered, ACC)
    seen = tl.maximum(tl.cdiv(start + covered - lane, BLOCK_L), 0).to(ACC)
    average = tl.sum(seen * mean, axis=1) / count
    # A lane that saw nothing has mean 0 and weight 0.
    distance = mean - average[:, None]
    spread = tl.sum(squares + seen * distance * distance, axis=1)
    statistics = 2 if places is None else 4
    into = values + row * statistics + index
    tl.store(into, average, stored)
    tl.store(into + total, spread if SPLIT else spread / count, stored)
    if places is not None:
        high, high_at = _extremum(highest, lane + highest_turn * BLOCK_L, True)
        low, low_at = _extremum(lowest, lane + lowest_turn * BLOCK_L, False)
        tl.store(into + 2 * tl.cast(total, tl.int64), high, stored)
        tl.store(into + 3 * tl.cast(total, tl.int64), low, stored)
        into_places = places + row * 2 + index
        tl.store(into_places, high_at, stored)
        tl.store(into_places + total, low_at, stored)
        if split == 0:
            here = x + base + tl.arange(0, BLOCK_M) * (1 if CHANNELS_LAST else positions)
            tl.store(firsts + index, tl.load(here, stored).to(ACC), stored)


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
    highest_split = tl.zeros((BLOCK,), tl.int32)
    lowest_split = tl.zeros((BLOCK,), tl.int32)
    for i in range(splits):
        source = partial + i * wide * statistics + index
        seen = tl.cast(i * length, ACC)
        count = tl.cast(tl.minimum(positions - i * length, length), ACC)
        delta = tl.load(source, exists, other=0) - mean
        mean += delta * (count / (seen + count))
        spread += tl.load(source + wide, exists, other=0)
        spread += delta * delta * (seen * count / (seen + count))
        if places is not None:
            high = tl.load(source + 2 * wide, exists, other=0)
            highest, highest_split = _improve(highest, highest_split, high, i, True)
            low = tl.load(source + 3 * wide, exists, other=0)
            lowest, lowest_split = _improve(lowest, lowest_split, low, i, False)
    tl.store(values + index, mean, exists)
    tl.store(values + wide + index, spread / tl.cast(positions, ACC), exists)
    if places is not None:
        tl.store(values + 2 * wide + index, highest, exists)
        tl.store(values + 3 * wide + index, lowest, exists)
        at = tl.load(partial_places + highest_split * wide * 2 + index, exists)
        tl.store(places + index, at, exists)
        at = tl.load(partial_places + (lowest_split * wide * 2 + wide) + index, exists)
        tl.store(places + wide + index, at, exists)
