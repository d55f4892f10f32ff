"""Mean, variance, extrema and their first positions of every channel, in one read (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's, as is host-side arithmetic.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.triton import layout as layouts
from spem.kernels.triton.layout import Layout, dense, layout_of, origin, tile, wide_dtypes
from spem.kernels.triton.moments import extremum, follow, merge_kernel
from spem.kernels.triton.short import is_short, launch_short_pool

_MERGE_BLOCK = 128


class Moments(NamedTuple):
    """The moments of feature maps, each (N, C), in float32, or float64 for feature maps of float64.

    `var` is biased. `argmax` and `argmin`, int32, are first positions in row-major order. Where a
    channel holds NaN, both extrema are NaN, and their positions are any of its positions. Extrema
    not asked for are None.
    """

    mean: Tensor
    var: Tensor
    max: Tensor | None
    min: Tensor | None
    argmax: Tensor | None
    argmin: Tensor | None


def pool(x: Tensor, extrema: bool) -> Moments:
    """Compute the moments of every channel in one read.

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
    """Compute the moments of every channel in one read; see `pool`.

    Returns:
        (2, N, C), mean and variance; with extrema (7, N, C): maximum, minimum, the bits of their
        positions as integers of the same width, and the value at position 0, too.
    """
    x = dense(x)
    dtype, acc = wide_dtypes(x)
    stack = layouts.empty((7 if extrema else 2, *x.shape[:2]), x, dtype)
    if stack.numel():
        _launch(x, stack, _places(stack) if extrema else None, acc)
    return stack


def _places(stack: Tensor) -> Tensor:
    """Return the positions of the extrema, (2, N, C), in what `pool_stack` returns."""
    return stack[4:6].view(torch.int64 if stack.dtype == torch.float64 else torch.int32)


class _Plan(NamedTuple):
    """How the kernel is launched: `splits` programs share a channel, of `length` positions each."""

    programs: int
    splits: int
    length: int
    constants: dict[str, Any]


# Warps that fill any device of today. A constant, not a property of the device: the same sums are
# formed everywhere.
_ENOUGH_WARPS = 1024
# However many share a channel, each lane has at least this many turns.
_FEWEST_TURNS = 8
# Lanes that read a whole cache line of a channel.
_FEWEST_LANES = 8
_MOST_WARPS = 16
# Tiles that are on their way at once.
_UNROLL = 8
# Bytes of a lane's vector, and of a row of channels that a program reads: the second where there
# are enough programs then.
_VECTOR = 16
_ROWS = (128, 256)


@lru_cache(maxsize=1024)
def _plan(layout: Layout, itemsize: int) -> _Plan:
    """Choose tiles of one vector a lane, and how many lanes share a channel.

    Too few lanes do not fill the device, too many have little to do before they are merged. Where
    channels are so few that even the largest programs do not fill it, several programs share each,
    whose partial results a second stage merges in order: atomics would add in another order at
    every run.
    """
    last, groups, maps, positions = layout
    vector = _VECTOR // itemsize
    if last:
        narrow, wide = (min(triton.next_power_of_2(maps), row // itemsize) for row in _ROWS)
        block_m = wide if groups * triton.cdiv(maps, wide) >= _ENOUGH_WARPS else narrow
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
        while block_l > _FEWEST_LANES * vector and block_l * _FEWEST_TURNS > positions:
            block_l //= 2
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
    if is_short(layout, x.element_size()):
        launch_short_pool(x, values, places, layout, acc)
        return
    plan = _plan(layout, x.element_size())
    total = layout.groups * layout.maps
    split = plan.splits > 1
    into, into_places = values, places
    if split:
        statistics = 2 if places is None else 4
        into = layouts.empty((plan.splits, statistics, total), x, values.dtype)
        if places is not None:
            into_places = layouts.empty((plan.splits, 2, total), x, places.dtype)
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
        merge_kernel[(triton.cdiv(total, _MERGE_BLOCK),)](
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
def _ahead(pointers, step, exist, UNROLL: tl.constexpr):
    """Start the loads of one value of each lane from each of `UNROLL` tiles, if they exist."""
    values = ()
    for u in tl.static_range(UNROLL):
        values += (tl.load(pointers + step * u, exist, other=0),)
    return values


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
    held = _ahead(pointers, step, full > 0, UNROLL)
    for turn in range(0, full, UNROLL):
        pointers += step * UNROLL
        # The next values are on their way while these are worked on.
        coming = _ahead(pointers, step, turn + UNROLL < full, UNROLL)
        for u in tl.static_range(UNROLL):
            state = follow(state, held[u].to(ACC), turn + u, None, places)
        held = coming
    for turn in range(full, tl.cdiv(covered, BLOCK_L)):
        mask = exists & (lane + turn * BLOCK_L < positions)
        value = tl.load(pointers, mask, other=0).to(ACC)
        pointers += step
        state = follow(state, value, turn, mask, places)
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
        high, high_at = extremum(highest, lane + highest_turn * BLOCK_L, True, 1)
        low, low_at = extremum(lowest, lane + lowest_turn * BLOCK_L, False, 1)
        tl.store(into + 2 * tl.cast(total, tl.int64), high, stored)
        tl.store(into + 3 * tl.cast(total, tl.int64), low, stored)
        into_places = places + row * 2 + index
        tl.store(into_places, high_at, stored)
        tl.store(into_places + total, low_at, stored)
        if split == 0:
            here = x + base + tl.arange(0, BLOCK_M) * (1 if CHANNELS_LAST else positions)
            tl.store(firsts + index, tl.load(here, stored).to(ACC), stored)
