"""Means over seeds, and differences between networks that are paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spem._extras import needs_extra

with needs_extra("report"):
    from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05
WILCOXON_FROM = 6  # with fewer pairs no exact two-sided p is below 0.05
# Points of accuracy: the size of the gains that papers of this field claim.
RELEVANT = 1.0
# Points. The rounding of records and of subtractions moves a difference by less than this, one
# image moves it by more unless there are a million.
_SAME = 1e-4
UNDECIDED = "inconclusive"

RULE = (
    "Verdicts: “higher” and “lower” where p of the paired t-test is below"
    f" {LEVEL} after Holm's correction over all comparisons of one table; else"
    f" “{UNDECIDED}” where n is 1 or the {100 * CONFIDENCE:g} % interval reaches beyond"
    f" ±{RELEVANT:g} point, the size of the gains that papers of this field claim: the seeds are"
    " too few to tell;"
    " else “no difference beyond” the farther end of the interval. The interval is of one"
    " comparison and is not corrected, so it may exclude zero where the corrected p does not"
    f" reach {LEVEL}."
)


class Summary(NamedTuple):
    """Several values of one quantity.

    Attributes:
        n: how many.
        mean: their mean.
        deviation: the sample standard deviation; None for n = 1.
        low, high: the 95 % interval of the mean by Student's t; None for n = 1.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A row minus its baseline, paired by seed.

    Attributes:
        n: seeds that both have.
        mean: difference; None for n = 0.
        low, high: the 95 % interval; None below n = 2.
        p: of the paired t-test, two-sided; None where `reason` says why.
        wilcoxon: p of the signed-rank test, two-sided; None below n = 6 or without p.
        reason: why there is no p.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    wilcoxon: float | None = None
    reason: str | None = None


def summary(values: Sequence[float]) -> Summary:
    """Return mean, deviation and interval.

    Args:
        values: at least one.

    Raises:
        ValueError: there is none.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a summary needs at least one value, got none")
    mean = statistics.fmean(values)
    if n == 1:
        return Summary(n, mean, None, None, None)
    deviation = statistics.stdev(values)
    if deviation == 0:
        return Summary(n, mean, deviation, mean, mean)
    found: Any = stats.ttest_1samp(values, mean)
    return Summary(n, mean, deviation, *map(float, found.confidence_interval(CONFIDENCE)))


def compare_paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Compare a row with its baseline.

    Args:
        values: by seed.
        baseline: by seed.
    """
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    n = len(differences)
    if n == 0:
        return Difference(0, reason="no seed in common")
    if n == 1:
        return Difference(1, differences[0], reason="n = 1")
    tied = _merge_rounding(differences)
    if len(set(tied)) == 1:
        return Difference(n, tied[0], tied[0], tied[0], reason="zero variance")
    _, mean, _, low, high = summary(differences)
    paired: Any = stats.ttest_1samp(differences, 0)
    ranked: Any = stats.wilcoxon(tied) if n >= WILCOXON_FROM else None
    wilcoxon = ranked and float(ranked.pvalue)
    return Difference(n, mean, low, high, float(paired.pvalue), wilcoxon)


def _merge_rounding(differences: Sequence[float]) -> list[float]:
    """Return the differences, with one size for all sizes that differ by rounding alone."""
    last, shared = 0.0, {}
    for size in sorted(map(abs, differences)):
        last = last if size - last < _SAME else size
        shared[size] = last
    # Adding zero turns -0.0, which would be written as -0.00, into 0.0.
    return [shared[abs(each)] * (1 if each > 0 else -1) + 0.0 for each in differences]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values after Holm's step-down correction for their number; None stays None.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (Scandinavian Journal of
        Statistics 6, 1979).

    Example:
        >>> holm([0.04, None, 0.01])
        [0.04, None, 0.02]
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def verdict(difference: Difference, corrected: float | None) -> str:
    """Return what a comparison tells, in a few words; `RULE` says by which rule.

    Args:
        difference: in points.
        corrected: its p after Holm's correction; None if it has none.
    """
    mean, low, high = difference[1:4]
    if mean is None:
        return "no seed in common"
    undecided = f"{UNDECIDED} (n = {difference.n})"
    if low is None or high is None:
        return undecided
    if difference.p is None:
        return f"no test, every seed differs by {mean:+.2f} points"
    if corrected is not None and corrected < LEVEL:
        return "higher" if mean > 0 else "lower"
    farther = max(abs(low), abs(high))
    if farther > RELEVANT:
        return undecided
    # Rounded up, so that what is written down holds.
    return f"no difference beyond ±{math.ceil(round(100 * farther, 6)) / 100:.2f} points"


def read_interval(low: float, high: float) -> str:
    """Return the interval of a difference in words.

    Example:
        >>> read_interval(-1.09, 0.19)
        'between 1.09 points lower and 0.19 points higher'
        >>> read_interval(0.5, 2)
        'between 0.50 and 2.00 points higher'
    """
    if low < 0 < high:
        return f"between {-low:.2f} points lower and {high:.2f} points higher"
    near, far = sorted((abs(low), abs(high)))
    return f"between {near:.2f} and {far:.2f} points {'higher' if high > 0 else 'lower'}"
