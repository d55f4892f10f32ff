"""Recalibration of a batch of channels in one pass (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.triton import layout as layouts
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
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """Compute relu(scale·x + shift + residual) in float32 or wider, rounded once.

    Args:
        x: (N, C, H, W), any strides.
        scale: (N, C), or (C,) for all images, float32 or wider, contiguous.
        shift: as scale, or None.
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
        scale,
        shift,
        residual,
        out,
        *layout[1:],
        x.shape[1],
        PER_CHANNEL=scale.dim() == 1,
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
    # (BLOCK_M, BLOCK_L); scale and shift (BLOCK_M, 1), or (1, BLOCK_L) where flat
    value = tl.load(x + base + offsets, mask).to(ACC)
    value *= per_map(scale, index, known, FLAT_POSITIONS > 0)
    if shift is not None:
        value += per_map(shift, index, known, FLAT_POSITIONS > 0)
    if residual is not None:
        value += tl.load(residual + base + offsets, mask).to(ACC)
    if RELU:
        # Unlike a maximum, this hands NaN on.
        value = tl.where(value < 0, 0, value)
    tl.store(out + base + offsets, value.to(out.dtype.element_ty), mask)
