"""The sigmoid of a recalibration, and the gradients of its coefficients (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def weigh(x, centred, slope, offset, square, SQUARES: tl.constexpr):
    """Return σ(slope·x + offset + square·centred²)."""
    logits = slope * x + offset
    if SQUARES:
        logits += square * centred * centred
    return tl.sigmoid(logits)


@triton.jit
def follow_sums(gradient, x, scale, shift, slope, offset, square, centre, NUMBER: tl.constexpr):
    """Return what one element adds to the sums of the gradients of `NUMBER` coefficients.

    They are of d·x·σ, d·σ and, with u = d·(scale·x + shift)·σ′, of u·x, u, u·(x − centre)² and
    u·(x − centre). Without a sigmoid the first two count, of d·x and d; without a square four.
    """
    if NUMBER > 2:
        centred = x - centre if NUMBER > 4 else x
        weight = weigh(x, centred, slope, offset, square, NUMBER > 4)
        gradient *= weight
        whole = gradient * (scale * x + shift) * (1 - weight)
        distance = whole * centred
        return gradient * x, gradient, whole * x, whole, distance * centred, distance
    return gradient * x, gradient, gradient, gradient, gradient, gradient


@triton.jit
def store_sums(
    into,
    total,
    exists,
    scale,
    shift,
    slope,
    offset,
    square,
    distance,
    curve,
    NUMBER: tl.constexpr,
):
    """Write the gradients of a channel's coefficients, `total` apart, from its sums.

    The curve is its coefficient `square`.
    """
    tl.store(into, scale, exists)
    tl.store(into + total, shift, exists)
    wide = tl.cast(total, tl.int64)
    if NUMBER > 2:
        tl.store(into + 2 * wide, slope, exists)
        tl.store(into + 3 * wide, offset, exists)
    if NUMBER > 4:
        tl.store(into + 4 * wide, square, exists)
        tl.store(into + 5 * wide, -2 * curve * distance, exists)
