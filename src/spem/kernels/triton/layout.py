"""How the Triton kernels read feature maps: in tiles of channels × positions, in memory order.

NCHW is one group of N·C channels, each of L = H·W adjacent positions; channels_last is N groups of
C channels, which are adjacent at each position. A kernel sees a group as a matrix (channels,
positions) with two strides, one of which is 1, and the compiler orders a tile's lanes along it: the
same kernel reads both formats in whole cache lines. `maps` in a name counts channels of all images.
"""

# Triton types its host-side arithmetic as that of kernels.
# pyright: reportArgumentType=false, reportOperatorIssue=false

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile: two to four vector loads of 16 bytes for each of 128 threads, few enough
# that the running statistics of all elements stay in registers.
READ_TILE = 1024
WRITE_TILE = 2048
# Maps up to this many positions are short.
SHORT = 128
# Programs that fill any device of today several times over. A constant, not a property of the
# device: the same sums are formed everywhere.
ENOUGH_PROGRAMS = 1024
# A split channel must leave each program this many tiles, or the merge costs more than it gains.
TILES_PER_SPLIT = 4
# Integers that this divides are known as such to the compiler, which then loads whole vectors.
ALIGNED = 16


class Layout(NamedTuple):
    """A batch of channels in memory: `groups` matrices of `maps` × `positions`."""

    channels_last: bool
    groups: int
    maps: int
    positions: int


def dense(x: Tensor, like: Layout | None = None) -> Tensor:
    """Return a batch of feature maps without gaps, copied only where it has some.

    Args:
        x: (N, C, H, W) of any strides.
        like: the layout to bring it to; None keeps the format it is nearest to.

    Returns:
        (N, C, H, W), contiguous or channels_last.
    """
    if like is not None:
        last = like.channels_last
    elif x.is_contiguous():
        return x
    else:
        last = x.stride(1) < x.stride(3) or x.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def layout_of(x: Tensor) -> Layout:
    """Return the layout of a dense batch; where both formats fit, it is NCHW."""
    n, c, h, w = x.shape
    last = not x.is_contiguous()
    return Layout(True, n, c, h * w) if last else Layout(False, 1, n * c, h * w)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate values that a kernel writes, on the device of `like`."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def empty_map(like: Tensor) -> Tensor:
    """Allocate feature maps that a kernel writes, in the shape, dtype and strides of `like`."""
    return torch.empty_like(like)


def wide_dtypes(x: Tensor) -> tuple[torch.dtype, Any]:
    """Return the dtype of all statistics of x, for PyTorch and for Triton."""
    if x.dtype == torch.float64:
        return torch.float64, tl.float64
    return torch.float32, tl.float32


class Plan(NamedTuple):
    """How a kernel is launched on a layout."""

    programs: int
    splits: int
    iterations: int
    block_l: int
    constants: dict[str, Any]


@lru_cache(maxsize=1024)
def reading(layout: Layout, itemsize: int) -> Plan:
    """Choose the tile of a reduction, and how many programs share a channel.

    A warp reads 512 bytes of a row at once, so a tile of at least that length gives a warp
    channels of its own, whose lanes are merged inside of the warp. Where channels are too few to
    fill the device, each is split over several programs, whose partial results a second stage
    merges in order: atomics would add in another order at every run.
    """
    last, groups, maps, positions = layout
    warps = 4
    if last:
        block_m = min(triton.next_power_of_2(maps), 512 // itemsize)
        # Short channels: a warp keeps its channels to itself and has nothing to merge.
        if positions <= SHORT and groups * maps // block_m >= ENOUGH_PROGRAMS:
            warps = 1
        block_l = min(triton.next_power_of_2(positions), READ_TILE // 4 * warps // block_m)
        block_l = max(block_l, min(2, positions))
    else:
        block_l = min(triton.next_power_of_2(positions), 256)
        block_m = min(triton.next_power_of_2(maps), READ_TILE // block_l)
    programs = groups * triton.cdiv(maps, block_m)
    tiles = triton.cdiv(positions, block_l)
    splits = max(1, min(ENOUGH_PROGRAMS // programs, tiles // TILES_PER_SPLIT))
    iterations = triton.cdiv(tiles, splits)
    # Rounding up may leave the last programs without a tile: they are not started.
    splits = triton.cdiv(tiles, iterations)
    even = positions % (block_l * iterations) == 0
    constants = {"BLOCK_M": block_m, "BLOCK_L": block_l, "CHANNELS_LAST": last, "EVEN": even}
    return Plan(programs * splits, splits, iterations, block_l, constants | {"num_warps": warps})


@lru_cache(maxsize=1024)
def writing(layout: Layout) -> Plan:
    """Choose the tile of an elementwise kernel.

    Rows that do not start on a vector's boundary (7 × 7 positions, 3 channels) would be loaded one
    element at a time. Such a batch is read as one line instead, and each element finds its channel
    by a division, by numbers that the compiler must know to make it cheap.
    """
    last, groups, maps, positions = layout
    flat_maps = flat_positions = 0
    warps = 4
    if (maps if last else positions) % ALIGNED:
        block_m, block_l = 1, WRITE_TILE
        flat_maps, flat_positions = maps if last else 1, positions
        warps = 8  # what belongs to a channel is loaded for each element, into registers of its own
        programs = triton.cdiv(groups * maps * positions, WRITE_TILE)
    else:
        if last:
            block_m = min(triton.next_power_of_2(maps), 128)
            block_l = min(triton.next_power_of_2(positions), WRITE_TILE // block_m)
        else:
            block_l = min(triton.next_power_of_2(positions), WRITE_TILE)
            block_m = min(triton.next_power_of_2(maps), WRITE_TILE // block_l)
        programs = groups * triton.cdiv(maps, block_m) * triton.cdiv(positions, block_l)
    constants = {"BLOCK_M": block_m, "BLOCK_L": block_l, "CHANNELS_LAST": last}
    constants |= {"FLAT_MAPS": flat_maps, "FLAT_POSITIONS": flat_positions, "num_warps": warps}
    return Plan(programs, 1, 1, block_l, constants)


@triton.jit
def origin(maps, chunks, BLOCK_M: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return (group, block of channels, chunk of positions) of this program.

    Programs that run side by side read side by side: chunks of a row in NCHW, channels else.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(maps, BLOCK_M)
    if CHANNELS_LAST:
        block = program % blocks
        chunk = (program // blocks) % chunks
        group = program // blocks // chunks
    else:
        chunk = program % chunks
        block = program // chunks
        group = 0
    return group, block, chunk


@triton.jit
def tile(
    group,
    first_map,
    first_position,
    maps,
    positions,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Return (base, offsets (BLOCK_M, BLOCK_L)) of a tile; the base alone may pass 2³¹."""
    start = tl.cast(group, tl.int64) * maps * positions
    m = tl.arange(0, BLOCK_M)[:, None]
    p = tl.arange(0, BLOCK_L)[None, :]
    if CHANNELS_LAST:
        base = start + first_map + tl.cast(first_position, tl.int64) * maps
        offsets = m + p * maps
    else:
        base = start + tl.cast(first_map, tl.int64) * positions + first_position
        offsets = m * positions + p
    return base, offsets


@triton.jit
def element_tile(
    groups,
    maps,
    positions,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT_MAPS: tl.constexpr,
    FLAT_POSITIONS: tl.constexpr,
):
    """Return where this program's elements are and to which channels they belong.

    Returns:
        base, offsets: int64 scalar and int32 (BLOCK_M, BLOCK_L), the elements in memory.
        mask: (BLOCK_M, BLOCK_L), the elements that exist.
        index, index_mask: which of the N·C channels; (BLOCK_M,), or (1, BLOCK_L) where flat.
        place: position in the channel; (1, BLOCK_L).
    """
    if FLAT_POSITIONS > 0:
        base = tl.cast(tl.program_id(0), tl.int64) * BLOCK_L
        offsets = tl.arange(0, BLOCK_L)[None, :]
        left = tl.cast(groups, tl.int64) * maps * positions - base
        mask = offsets < left
        # Only scalars are divided in 64 bits: the element's row and channel count from the
        # program's first ones, in 32.
        first_row = base // FLAT_MAPS
        column = tl.cast(base - first_row * FLAT_MAPS, tl.int32) + offsets
        first_group = first_row // FLAT_POSITIONS
        row = tl.cast(first_row - first_group * FLAT_POSITIONS, tl.int32) + column // FLAT_MAPS
        place = row % FLAT_POSITIONS
        group = tl.cast(first_group, tl.int32) + row // FLAT_POSITIONS
        index = group * FLAT_MAPS + column % FLAT_MAPS
        index_mask = mask
    else:
        chunks = tl.cdiv(positions, BLOCK_L)
        group, block, chunk = origin(maps, chunks, BLOCK_M, CHANNELS_LAST)
        base, offsets = tile(
            group,
            block * BLOCK_M,
            chunk * BLOCK_L,
            maps,
            positions,
            BLOCK_M,
            BLOCK_L,
            CHANNELS_LAST,
        )
        m = block * BLOCK_M + tl.arange(0, BLOCK_M)
        place = chunk * BLOCK_L + tl.arange(0, BLOCK_L)[None, :]
        index_mask = m < maps
        mask = index_mask[:, None] & (place < positions)
        index = group * maps + m
    return base, offsets, mask, index, index_mask, place


@triton.jit
def per_map(values, index, index_mask, FLAT: tl.constexpr):
    """Load what belongs to a channel, to be broadcast over a tile: (BLOCK_M, 1) or (1, BLOCK_L)."""
    value = tl.load(values + index, index_mask)
    if not FLAT:
        # A load of two dimensions would be repeated for each element of a lane.
        value = value[:, None]
    return value
