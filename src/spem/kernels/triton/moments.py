"""Running moments of lanes, and how they are merged (Triton)."""

# Arguments and results of kernels are the compiler's, not Python's.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

# All positions are below this.
_FAR = tl.constexpr(2**30)


@triton.jit
def improve(best, turn, value, i, LARGEST: tl.constexpr):
    """Take over values that are better, and NaN for good; the earlier one keeps a tie."""
    if LARGEST:
        turn = tl.where(value > best, i, turn)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    else:
        turn = tl.where(value < best, i, turn)
        best = tl.minimum(best, value, propagate_nan=tl.PropagateNan.ALL)
    return best, turn


@triton.jit
def extremum(best, place, LARGEST: tl.constexpr, AXIS: tl.constexpr):
    """Reduce lanes along an axis to each channel's extremum and its first position; NaN is at 0."""
    # A reduction by value and position at once would cost as many exchanges and lose NaN.
    nan = tl.max((best != best).to(tl.int32), axis=AXIS) > 0
    value = tl.max(best, axis=AXIS) if LARGEST else tl.min(best, axis=AXIS)
    first = tl.min(tl.where(best == tl.expand_dims(value, AXIS), place, _FAR), axis=AXIS)
    return tl.where(nan, float("nan"), value), tl.where(nan, 0, first)


@triton.jit
def follow(state, value, turn, mask, places):
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
        highest, highest_turn = improve(highest, highest_turn, high, turn, True)
        lowest, lowest_turn = improve(lowest, lowest_turn, low, turn, False)
    return mean, squares, highest, highest_turn, lowest, lowest_turn


@triton.jit
def merge_kernel(
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
    """Merge the splits of each channel in their order, by the formula of Chan, Golub and LeVeque.

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
            highest, highest_split = improve(highest, highest_split, high, i, True)
            low = tl.load(source + 3 * wide, exists, other=0)
            lowest, lowest_split = improve(lowest, lowest_split, low, i, False)
    tl.store(values + index, mean, exists)
    tl.store(values + wide + index, spread / tl.cast(positions, ACC), exists)
    if places is not None:
        tl.store(values + 2 * wide + index, highest, exists)
        tl.store(values + 3 * wide + index, lowest, exists)
        at = tl.load(partial_places + highest_split * wide * 2 + index, exists)
        tl.store(places + index, at, exists)
        at = tl.load(partial_places + (lowest_split * wide * 2 + wide) + index, exists)
        tl.store(places + wide + index, at, exists)
