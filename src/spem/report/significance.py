"""Means over seeds or folds, and differences between networks that are paired by these."""

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


class Repeats(NamedTuple):
    """What the runs of a row differ in: their seeds, or the fold of the images that they test.

    Folds share training images, so their results depend on each other, and the plain t-test takes
    small differences for real ones too often.

    Attributes:
        word: "seed" or "fold".
        ratio: of folds: the images that a run tests, over those that it trains on; 0 of seeds.
    """

    word: str = "seed"
    ratio: float = 0.0

    @property
    def test(self) -> str:
        """The name of the test of a difference."""
        return "corrected resampled t-test" if self.ratio else "paired t-test"

    def scale_variance(self, n: int) -> float:
        """Return the factor between the variance of n results and that of their mean.

        It is 1/n for independent results and 1/n + ratio for folds.

        Source: Nadeau and Bengio, "Inference for the Generalization Error" (Machine Learning 52,
            2003), section 3, the corrected resampled t-test.
        """
        return 1 / n + self.ratio


SEEDS = Repeats()


def state_rule(repeats: Repeats = SEEDS) -> str:
    """Return by which rule `verdict` judges, in words."""
    return (
        f"Verdicts: “higher” and “lower” where p of the {repeats.test} is below"
        f" {LEVEL} after Holm's correction over all comparisons of one table; else"
        f" “{UNDECIDED}” where n is 1 or the {100 * CONFIDENCE:g} % interval reaches beyond"
        f" ±{RELEVANT:g} point, the size of the gains that papers of this field claim: the"
        f" {repeats.word}s are too few to tell;"
        " else “no difference beyond” the farther end of the interval. The interval is of one"
        " comparison and is not corrected for several, so it may exclude zero where the"
        f" corrected p does not reach {LEVEL}."
    )


class Summary(NamedTuple):
    """Several values of one quantity.

    Attributes:
        n: how many.
        mean: their mean.
        deviation: the sample standard deviation; None for n = 1.
        low, high: the 95 % interval of the mean by Student's t, of folds with the variance of the
            corrected resampled t-test; None for n = 1.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A row minus its baseline, paired by seed or by fold.

    Attributes:
        n: seeds or folds that both have.
        mean: difference; None for n = 0.
        low, high: the 95 % interval; None below n = 2.
        p: of the paired or the corrected resampled t-test, two-sided; None where `reason` says why.
        wilcoxon: p of the signed-rank test, two-sided; None below n = 6, without p, and of folds,
            which it would take for independent.
        reason: why there is no p.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    wilcoxon: float | None = None
    reason: str | None = None


def summary(values: Sequence[float], repeats: Repeats = SEEDS) -> Summary:
    """Return mean, deviation and interval.

    Args:
        values: at least one.
        repeats: what they are of.

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
    error = deviation * math.sqrt(repeats.scale_variance(n))
    low, high = stats.t.interval(CONFIDENCE, n - 1, mean, error)
    return Summary(n, mean, deviation, float(low), float(high))


def compare_paired(
    values: Mapping[int, float], baseline: Mapping[int, float], repeats: Repeats = SEEDS
) -> Difference:
    """Compare a row with its baseline.

    Args:
        values: by seed or by fold.
        baseline: the same.
        repeats: which of the two.
    """
    differences = [values[each] - baseline[each] for each in values if each in baseline]
    n = len(differences)
    if n == 0:
        return Difference(0, reason=f"no {repeats.word} in common")
    if n == 1:
        return Difference(1, differences[0], reason="n = 1")
    tied = _merge_rounding(differences)
    if len(set(tied)) == 1:
        return Difference(n, tied[0], tied[0], tied[0], reason="zero variance")
    _, mean, deviation, low, high = summary(differences, repeats)
    t = mean / (deviation or 1.0) / math.sqrt(repeats.scale_variance(n))
    p = 2 * float(stats.t.sf(abs(t), n - 1))
    ranked: Any = stats.wilcoxon(tied) if n >= WILCOXON_FROM and not repeats.ratio else None
    return Difference(n, mean, low, high, p, ranked and float(ranked.pvalue))


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


def verdict(difference: Difference, corrected: float | None, word: str = "seed") -> str:
    """Return what a comparison tells, in a few words; `state_rule` says by which rule.

    Args:
        difference: in points.
        corrected: its p after Holm's correction; None if it has none.
        word: what it is paired by, seed or fold.
    """
    mean, low, high = difference[1:4]
    if mean is None:
        return f"no {word} in common"
    undecided = f"{UNDECIDED} (n = {difference.n})"
    if low is None or high is None:
        return undecided
    if difference.p is None:
        return f"no test, every {word} differs by {mean:+.2f} points"
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
