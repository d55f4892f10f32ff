"""Reductions of short channels off a vector's boundary, like 7 × 7 in NCHW (Triton).

Lanes that shared such a channel would load one element at a time. So many channels are loaded as
one line, and distributed through shared memory.
"""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportReturnType=false

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.autograd import Six, are_per_channel
from spem.kernels.triton.coefficients import follow_sums, store_sums
from spem.kernels.triton.layout import Layout
from spem.kernels.triton.moments import extremum

_LONGEST = 64
# Elements of a program: 64 for each of its 128 threads, all in registers.
_BLOCK = 8192
_VECTOR = 16  # bytes


def is_short(layout: Layout, itemsize: int) -> bool:
    """Return whether channels are so short that lanes which share one could load no vectors."""
    row = layout.positions * itemsize
    return not layout.channels_last and layout.positions <= _LONGEST and row % _VECTOR > 0


def launch_short_pool(
    x: Tensor, stack: Tensor, places: Tensor | None, layout: Layout, acc: Any
) -> None:
    """Write the moments of short channels; see `pool.pool_stack` for the arguments."""
    programs, constants = _plan(layout)
    _short_pool_kernel[(programs,)](x, stack, places, layout.maps, ACC=acc, **constants)


def launch_short_sums(
    grad: Tensor,
    out: Tensor | None,
    x: Tensor,
    d: Tensor,
    into: Tensor,
    coefficients: Six,
    layout: Layout,
    acc: Any,
) -> None:
    """Write d and the sums of short channels; see `backward.sums` for the arguments.

    The coefficients are six, all None without a sigmoid.
    """
    programs, constants = _plan(layout)
    constants |= {"PER_CHANNEL": are_per_channel(coefficients), "NUMBER": len(into)}
    scalars = layout.maps, x.shape[1]
    _short_sums_kernel[(programs,)](
        grad, out, x, d, into, *coefficients, *scalars, ACC=acc, **constants
    )


def _plan(layout: Layout) -> tuple[int, dict[str, int]]:
    length = triton.next_power_of_2(layout.positions)
    block = min(_BLOCK // length, triton.next_power_of_2(layout.maps))
    constants = {"POSITIONS": layout.positions, "BLOCK_M": block, "BLOCK_L": length}
    return triton.cdiv(layout.maps, block), constants


@triton.jit
def _line(maps, POSITIONS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr):
    """Return where this program's channels are in memory: first channel, base, offsets, mask."""
    first = tl.program_id(0) * BLOCK_M
    i = tl.arange(0, BLOCK_M * BLOCK_L)
    left = tl.cast(maps - first, tl.int64) * POSITIONS
    return first, tl.cast(first, tl.int64) * POSITIONS, i, (i < BLOCK_M * POSITIONS) & (i < left)


@triton.jit
def _distribute(line, POSITIONS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr):
    """Return a line of channels as (BLOCK_L, BLOCK_M), so that neighbouring lanes hold channels.

    Positions beyond a channel repeat its last one.
    """
    i = tl.arange(0, BLOCK_M * BLOCK_L)
    value = tl.gather(line, i % BLOCK_M * POSITIONS + tl.minimum(i // BLOCK_M, POSITIONS - 1), 0)
    return tl.reshape(value, (BLOCK_L, BLOCK_M))


@triton.jit
def _short_pool_kernel(
    x,
    values,
    places,
    maps,
    POSITIONS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ACC: tl.constexpr,
):
    """Each lane follows its own channel.

    values: (7 or 2, channels): mean, variance, max, min, two for `places`, values at position 0.
    places: (2, channels), or None: no extrema.
    """
    first, base, i, mask = _line(maps, POSITIONS, BLOCK_M, BLOCK_L)
    value = _distribute(tl.load(x + base + i, mask, other=0), POSITIONS, BLOCK_M, BLOCK_L).to(ACC)
    place = tl.arange(0, BLOCK_L)[:, None]
    exists = place < POSITIONS
    mean = tl.sum(tl.where(exists, value, 0), axis=0) / POSITIONS
    distance = tl.where(exists, value - mean[None, :], 0)
    # What rounding left: under a large mean, it would show in the variance.
    error = tl.sum(distance, axis=0) / POSITIONS
    distance = tl.where(exists, distance - error[None, :], 0)
    spread = tl.sum(distance * distance, axis=0)

    m = first + tl.arange(0, BLOCK_M)
    stored = m < maps
    wide = tl.cast(maps, tl.int64)
    tl.store(values + m, mean + error, stored)
    tl.store(values + wide + m, spread / POSITIONS, stored)
    if places is not None:
        high, high_at = extremum(value, place, True, 0)
        low, low_at = extremum(value, place, False, 0)
        tl.store(values + 2 * wide + m, high, stored)
        tl.store(values + 3 * wide + m, low, stored)
        tl.store(places + m, high_at, stored)
        tl.store(places + wide + m, low_at, stored)
        start = tl.sum(tl.where(place == 0, value, 0), axis=0)
        tl.store(values + 6 * wide + m, start, stored)


@triton.jit
def _short_sums_kernel(
    grad,
    out,
    x,
    d,
    into,
    scale,
    shift,
    slope,
    offset,
    square,
    centre,
    maps,
    channels,
    PER_CHANNEL: tl.constexpr,
    NUMBER: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write d and into (NUMBER, channels of all images), the gradients of the coefficients."""
    first, base, i, mask = _line(maps, POSITIONS, BLOCK_M, BLOCK_L)
    gradient = tl.load(grad + base + i, mask, other=0)
    value = tl.load(x + base + i, mask, other=0)
    if out is not None:
        result = tl.load(out + base + i, mask, other=0)
        gradient = tl.where(result <= 0, 0, gradient)
        tl.store(d + base + i, gradient, mask)
    gradient = _distribute(gradient, POSITIONS, BLOCK_M, BLOCK_L).to(ACC)
    value = _distribute(value, POSITIONS, BLOCK_M, BLOCK_L).to(ACC)
    exists = tl.arange(0, BLOCK_L)[:, None] < POSITIONS
    m = first + tl.arange(0, BLOCK_M)
    stored = m < maps
    zero = tl.zeros((BLOCK_M,), ACC)
    k0, k1, k2, k3, k4, k5 = zero, zero, zero, zero, zero, zero
    of = m % channels if PER_CHANNEL else m
    if NUMBER > 2:
        k0, k1 = tl.load(scale + of, stored, other=0), tl.load(shift + of, stored, other=0)
        k2, k3 = tl.load(slope + of, stored, other=0), tl.load(offset + of, stored, other=0)
    if NUMBER > 4:
        k4, k5 = tl.load(square + of, stored, other=0), tl.load(centre + of, stored, other=0)
    new = follow_sums(
        gradient,
        value,
        k0[None, :],
        k1[None, :],
        k2[None, :],
        k3[None, :],
        k4[None, :],
        k5[None, :],
        NUMBER,
    )
    store_sums(
        into + m,
        tl.cast(maps, tl.int64),
        stored,
        tl.sum(tl.where(exists, new[0], 0), axis=0),
        tl.sum(tl.where(exists, new[1], 0), axis=0),
        tl.sum(tl.where(exists, new[2], 0), axis=0),
        tl.sum(tl.where(exists, new[3], 0), axis=0),
        tl.sum(tl.where(exists, new[4], 0), axis=0),
        tl.sum(tl.where(exists, new[5], 0), axis=0),
        k4,
        NUMBER,
    )
