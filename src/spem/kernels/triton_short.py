"""Pooling of short maps that do not start on a vector's boundary, like 7 × 7 in NCHW (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.triton_layout import Layout
from spem.kernels.triton_moments import extremum

_LONGEST = 64
# Elements of a program: 64 for each of its 128 threads, all in registers.
_BLOCK = 8192
_VECTOR = 16  # bytes


def is_short(layout: Layout, itemsize: int) -> bool:
    """Tell whether maps are for `launch_short`: lanes that share them could load no vectors."""
    row = layout.positions * itemsize
    return not layout.channels_last and layout.positions <= _LONGEST and row % _VECTOR > 0


def launch_short(x: Tensor, stack: Tensor, places: Tensor | None, layout: Layout, acc: Any) -> None:
    """Write the moments of short maps; see `triton_pool.pool_stack` for the arguments."""
    length = triton.next_power_of_2(layout.positions)
    block = min(_BLOCK // length, triton.next_power_of_2(layout.maps))
    _short_pool_kernel[(triton.cdiv(layout.maps, block),)](
        x,
        stack,
        places,
        layout.maps,
        POSITIONS=layout.positions,
        BLOCK_M=block,
        BLOCK_L=length,
        ACC=acc,
    )


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
    """Load maps as one line, and deal them out through shared memory: neighbouring lanes get maps.

    values: (7 or 2, maps): mean, variance, max, min, two for `places`, the values at position 0.
    places: (2, maps), or None: no extrema.
    """
    first = tl.program_id(0) * BLOCK_M
    base = tl.cast(first, tl.int64) * POSITIONS
    i = tl.arange(0, BLOCK_M * BLOCK_L)
    left = tl.cast(maps - first, tl.int64) * POSITIONS
    line = tl.load(x + base + i, (i < BLOCK_M * POSITIONS) & (i < left), other=0)
    # Positions beyond the map repeat its last one, so extrema need no mask.
    value = tl.gather(line, i % BLOCK_M * POSITIONS + tl.minimum(i // BLOCK_M, POSITIONS - 1), 0)
    value = tl.reshape(value, (BLOCK_L, BLOCK_M)).to(ACC)
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
