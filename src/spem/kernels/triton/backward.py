"""The two passes of the backward of pooling and recalibration (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from spem.kernels.autograd import Recalibration, are_per_channel, pad_coefficients
from spem.kernels.triton import layout as layouts
from spem.kernels.triton.coefficients import follow_sums, store_sums, weigh
from spem.kernels.triton.layout import (
    dense,
    element_tile,
    layout_of,
    origin,
    per_map,
    reading,
    tile,
    wide_dtypes,
    writing,
)
from spem.kernels.triton.short import is_short, launch_short_sums


def sums(
    grad: Tensor, out: Tensor | None, x: Tensor, coefficients: Recalibration = (None, None)
) -> tuple[Tensor, Tensor]:
    """Mask a gradient by the output's ReLU and sum it over each channel, in one pass.

    Args:
        grad: (N, C, H, W), the gradient of the output.
        out: (N, C, H, W), the output, where it ends in a ReLU; None masks and writes nothing.
        x: (N, C, H, W), the input.
        coefficients: of the recalibration, contiguous; without a sigmoid they do not count.

    Returns:
        d: grad where out > 0, in the memory format of x; grad itself where out is None.
        stack: the gradients of the coefficients, (2, 4 or 6, N, C), float32 or wider; without a
            sigmoid Σ d·x and Σ d over the positions.
    """
    number = len(coefficients)
    x = dense(x)
    layout = layout_of(x)
    grad = dense(grad, layout)
    out = None if out is None else dense(out, layout)
    d = grad if out is None else layouts.empty_map(x)
    dtype, acc = wide_dtypes(x)
    if not x.numel():
        return d, torch.zeros((number, *x.shape[:2]), dtype=dtype, device=x.device)
    given = pad_coefficients(coefficients if number > 2 else ())
    if is_short(layout, x.element_size()):
        stack = layouts.empty((number, *x.shape[:2]), x, dtype)
        launch_short_sums(grad, out, x, d, stack, given, layout, acc)
        return d, stack
    plan = reading(layout, x.element_size())
    partial = layouts.empty((plan.splits, number, *x.shape[:2]), x, dtype)
    _sums_kernel[(plan.programs,)](
        grad,
        out,
        x,
        d,
        partial,
        *given,
        layout.maps,
        layout.positions,
        layout.groups * layout.maps,
        plan.iterations,
        plan.splits,
        x.shape[1],
        PER_CHANNEL=are_per_channel(given),
        NUMBER=number,
        ACC=acc,
        **plan.constants,
    )
    return d, partial[0] if plan.splits == 1 else partial.sum(0)


def input_gradient(
    d: Tensor | None,
    x: Tensor,
    coefficients: Recalibration = (None, None),
    mean: Tensor | None = None,
    dmean: Tensor | None = None,
    dvar: Tensor | None = None,
    argmax: Tensor | None = None,
    dmax: Tensor | None = None,
    argmin: Tensor | None = None,
    dmin: Tensor | None = None,
) -> Tensor:
    """Compute the gradient of a pooled and recalibrated channel, in one pass.

    That is scale·d + dmean/L + (2·dvar/L)·(x − mean) + dmax at argmax + dmin at argmin, without
    the terms whose gradient is None; x is read for the variance and for a sigmoid.

    Args:
        d: (N, C, H, W), as `sums` returns it.
        x: (N, C, H, W), the input.
        coefficients: of the recalibration, contiguous; a scale of None is 1.
        mean: (N, C), needed with dvar.
        dmean: (N, C), the gradient of the mean.
        dvar: (N, C), the gradient of the variance.
        argmax: (N, C), int32, needed with dmax.
        dmax: (N, C), the gradient of the maximum.
        argmin: (N, C), int32, needed with dmin.
        dmin: (N, C), the gradient of the minimum.

    Returns:
        (N, C, H, W) in the dtype and memory format of x.
    """
    x = dense(x)
    layout = layout_of(x)
    dx = layouts.empty_map(x)
    if not dx.numel():
        return dx
    plan = writing(layout)
    _input_gradient_kernel[(plan.programs,)](
        None if d is None else dense(d, layout),
        x,
        dx,
        *pad_coefficients(coefficients),
        mean,
        dmean,
        dvar,
        argmax,
        dmax,
        argmin,
        dmin,
        *layout[1:],
        x.shape[1],
        PER_CHANNEL=are_per_channel(coefficients),
        ACC=wide_dtypes(x)[1],
        **plan.constants,
    )
    return dx


@triton.jit
def _sums_kernel(
    grad,
    out,
    x,
    d,
    partial,
    scale,
    shift,
    slope,
    offset,
    square,
    centre,
    maps,
    positions,
    total,
    iterations,
    splits,
    channels,
    PER_CHANNEL: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write d and partial (splits, NUMBER, total), the gradients of the coefficients."""
    group, block, split = origin(maps, splits, BLOCK_M, CHANNELS_LAST)
    start = split * iterations * BLOCK_L
    base, offsets = tile(
        group, block * BLOCK_M, start, maps, positions, BLOCK_M, BLOCK_L, CHANNELS_LAST
    )
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = m < maps
    lane = start + tl.arange(0, BLOCK_L)[None, :]
    step = tl.cast(BLOCK_L, tl.int64) * (maps if CHANNELS_LAST else 1)
    zeros = tl.zeros((BLOCK_M, BLOCK_L), ACC)
    sum_dx, sum_d, linear, whole, squares, distance = zeros, zeros, zeros, zeros, zeros, zeros
    k0, k1, k2, k3, k4, k5 = zeros, zeros, zeros, zeros, zeros, zeros
    index = group * maps + m
    of = index % channels if PER_CHANNEL else index
    # Their gradients are linear in the sums, so that each program may compute its part.
    if NUMBER > 2:
        k0, k1 = per_map(scale, of, exists, False), per_map(shift, of, exists, False)
        k2, k3 = per_map(slope, of, exists, False), per_map(offset, of, exists, False)
    if NUMBER > 4:
        k4, k5 = per_map(square, of, exists, False), per_map(centre, of, exists, False)
    for i in range(iterations):
        mask = exists[:, None]
        if not EVEN:
            mask &= lane + i * BLOCK_L < positions
        gradient = tl.load(grad + base + offsets, mask, other=0)
        value = tl.load(x + base + offsets, mask, other=0).to(ACC)
        if out is not None:
            result = tl.load(out + base + offsets, mask, other=0).to(ACC)
            gradient = tl.where(result <= 0, 0, gradient)
            tl.store(d + base + offsets, gradient, mask)
        new = follow_sums(gradient.to(ACC), value, k0, k1, k2, k3, k4, k5, NUMBER)
        sum_dx += new[0]
        sum_d += new[1]
        if NUMBER > 2:
            linear += new[2]
            whole += new[3]
        if NUMBER > 4:
            squares += new[4]
            distance += new[5]
        base += step
    store_sums(
        partial + tl.cast(split, tl.int64) * NUMBER * total + index,
        total,
        exists,
        tl.sum(sum_dx, axis=1),
        tl.sum(sum_d, axis=1),
        tl.sum(linear, axis=1),
        tl.sum(whole, axis=1),
        tl.sum(squares, axis=1),
        tl.sum(distance, axis=1),
        tl.sum(k4, axis=1),
        NUMBER,
    )


@triton.jit
def _input_gradient_kernel(
    d,
    x,
    dx,
    scale,
    shift,
    slope,
    offset,
    square,
    centre,
    mean,
    dmean,
    dvar,
    argmax,
    dmax,
    argmin,
    dmin,
    groups,
    maps,
    positions,
    channels,
    PER_CHANNEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT_MAPS: tl.constexpr,
    FLAT_POSITIONS: tl.constexpr,
    ACC: tl.constexpr,
):
    base, offsets, mask, index, known, place = element_tile(
        groups, maps, positions, BLOCK_M, BLOCK_L, CHANNELS_LAST, FLAT_MAPS, FLAT_POSITIONS
    )
    share = 1 / tl.cast(positions, ACC)
    # (BLOCK_M, BLOCK_L); what belongs to a channel (BLOCK_M, 1), or (1, BLOCK_L) where flat
    value = tl.zeros((BLOCK_M, BLOCK_L), ACC)
    if d is not None:
        value = tl.load(d + base + offsets, mask).to(ACC)
        of = index % channels if PER_CHANNEL else index
        if offset is not None:
            v = tl.load(x + base + offsets, mask).to(ACC)
            factor = per_map(scale, of, known, FLAT_POSITIONS > 0)
            recalibrated = factor * v + per_map(shift, of, known, FLAT_POSITIONS > 0)
            steepness = per_map(slope, of, known, FLAT_POSITIONS > 0)
            start = per_map(offset, of, known, FLAT_POSITIONS > 0)
            if square is not None:
                centred = v - per_map(centre, of, known, FLAT_POSITIONS > 0)
                curve = per_map(square, of, known, FLAT_POSITIONS > 0)
                weight = weigh(v, centred, steepness, start, curve, True)
                steepness += 2 * curve * centred
            else:
                weight = weigh(v, v, steepness, start, v, False)
            value *= weight * (factor + recalibrated * (1 - weight) * steepness)
        elif scale is not None:
            value *= per_map(scale, of, known, FLAT_POSITIONS > 0)
    if dmean is not None:
        value += share * per_map(dmean, index, known, FLAT_POSITIONS > 0)
    if dvar is not None:
        centred = tl.load(x + base + offsets, mask).to(ACC) - per_map(
            mean, index, known, FLAT_POSITIONS > 0
        )
        value += (2 * share * per_map(dvar, index, known, FLAT_POSITIONS > 0)) * centred
    if dmax is not None:
        at = per_map(argmax, index, known, FLAT_POSITIONS > 0)
        value += tl.where(place == at, per_map(dmax, index, known, FLAT_POSITIONS > 0), 0)
    if dmin is not None:
        at = per_map(argmin, index, known, FLAT_POSITIONS > 0)
        value += tl.where(place == at, per_map(dmin, index, known, FLAT_POSITIONS > 0), 0)
    tl.store(dx + base + offsets, value.to(dx.dtype.element_ty), mask)
