"""Recalibration of a batch of channels in one pass (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.autograd import Recalibration, are_per_channel, pad_coefficients
from spem.kernels.triton import layout as layouts
from spem.kernels.triton.coefficients import weigh
from spem.kernels.triton.layout import (
    dense,
    element_tile,
    layout_of,
    per_map,
    wide_dtypes,
    writing,
)


def recalibrate(
    x: Tensor,
    coefficients: Recalibration,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """Recalibrate x, see `Backend.recalibrate`, in float32 or wider, rounded once.

    Args:
        x: (N, C, H, W), any strides.
        coefficients: of which the scale is there, float32 or wider, contiguous.
        residual: (N, C, H, W) in the dtype of x, or None.
        relu: whether negative results become 0.
        overwrite: whether the result takes the memory of x.

    Returns:
        (N, C, H, W) in the dtype and memory format of x.
    """
    x = dense(x)
    layout = layout_of(x)
    if overwrite:
        torch.autograd.graph.increment_version(x)
    out = x if overwrite else layouts.empty_map(x)
    if not out.numel():
        return out
    residual = None if residual is None else dense(residual, layout)
    plan = writing(layout)
    _recalibrate_kernel[(plan.programs,)](
        x,
        *pad_coefficients(coefficients),
        residual,
        out,
        *layout[1:],
        x.shape[1],
        PER_CHANNEL=are_per_channel(coefficients),
        RELU=relu,
        ACC=wide_dtypes(x)[1],
        **plan.constants,
    )
    return out


@triton.jit
def _recalibrate_kernel(
    x,
    scale,
    shift,
    slope,
    offset,
    square,
    centre,
    residual,
    out,
    groups,
    maps,
    positions,
    channels,
    PER_CHANNEL: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT_MAPS: tl.constexpr,
    FLAT_POSITIONS: tl.constexpr,
    ACC: tl.constexpr,
):
    base, offsets, mask, index, known, _ = element_tile(
        groups, maps, positions, BLOCK_M, BLOCK_L, CHANNELS_LAST, FLAT_MAPS, FLAT_POSITIONS
    )
    index = index % channels if PER_CHANNEL else index
    flat: tl.constexpr = FLAT_POSITIONS > 0
    # (BLOCK_M, BLOCK_L); the coefficients (BLOCK_M, 1), or (1, BLOCK_L) where flat
    v = tl.load(x + base + offsets, mask).to(ACC)
    value = v * per_map(scale, index, known, flat)
    if shift is not None:
        value += per_map(shift, index, known, flat)
    if offset is not None:
        steepness, start = per_map(slope, index, known, flat), per_map(offset, index, known, flat)
        if square is not None:
            centred = v - per_map(centre, index, known, flat)
            factor = per_map(square, index, known, flat)
            value *= weigh(v, centred, steepness, start, factor, True)
        else:
            value *= weigh(v, v, steepness, start, v, False)
    if residual is not None:
        value += tl.load(residual + base + offsets, mask).to(ACC)
    if RELU:
        # Unlike a maximum, this hands NaN on.
        value = tl.where(value < 0, 0, value)
    tl.store(out + base + offsets, value.to(out.dtype.element_ty), mask)
