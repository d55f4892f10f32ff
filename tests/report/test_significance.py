"""The statistics of a report, against scipy and against numbers that can be checked by hand."""

import math
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spem.report.significance import (
    Difference,
    Repeats,
    Summary,
    compare_paired,
    holm,
    state_rule,
    summary,
    verdict,
)

ONE = [91.02, 91.5, 90.88, 91.33, 91.2, 91.61, 90.97]
OTHER = [90.7, 91.31, 90.95, 90.84, 91.02, 91.2, 90.4]


def by_seed(values):
    return dict(enumerate(values))


def test_a_summary_is_that_of_scipy():
    found = summary(ONE)
    spread = stats.sem(ONE)
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, len(ONE) - 1, loc=found.mean, scale=spread)
    )
    assert found.deviation == pytest.approx(spread * math.sqrt(len(ONE)))
    assert (found.n, found.mean) == (7, pytest.approx(sum(ONE) / 7))


def test_two_values_have_the_interval_of_students_t_with_one_degree_of_freedom():
    assert summary([1, 3]) == pytest.approx((2, 2, math.sqrt(2), 2 - 12.7062047, 2 + 12.7062047))


def test_one_value_has_neither_deviation_nor_interval():
    assert summary([3.5]) == Summary(1, 3.5, None, None, None)


def test_equal_values_have_an_interval_of_no_width():
    assert summary([3.5] * 4) == Summary(4, 3.5, 0, 3.5, 3.5)


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one value, got none"):
        summary([])


def test_a_comparison_is_that_of_scipy():
    found = compare_paired(by_seed(ONE), by_seed(OTHER))
    paired = stats.ttest_rel(ONE, OTHER)
    interval = paired.confidence_interval(0.95)
    assert found.p == pytest.approx(paired.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(sum(ONE) / 7 - sum(OTHER) / 7)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(ONE, OTHER).pvalue)
    assert (found.n, found.reason) == (7, None)


def test_seeds_are_paired_by_their_number_and_not_by_their_order():
    one, other = by_seed(ONE), dict(reversed(by_seed(OTHER).items()))
    assert compare_paired(one, other) == compare_paired(one, by_seed(OTHER))
    fewer = {seed: other[seed] for seed in (1, 3, 5)} | {99: 0.0}
    found = compare_paired(one, fewer)
    assert found.n == 3
    assert found.p == pytest.approx(stats.ttest_rel(ONE[1::2], OTHER[1::2]).pvalue)


def test_the_signed_ranks_are_exact_from_six_pairs():
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert compare_paired(by_seed(values), by_seed([0] * 6)).wilcoxon == pytest.approx(2 / 2**6)
    assert compare_paired(by_seed(values[:5]), by_seed([0] * 5)).wilcoxon is None


def test_ties_and_zeros_are_counted_out_exactly():
    # The ranks 2, 2, 2, 4.5, 4.5 without the zero: 4 of the 32 signs give W- <= 2.
    found = compare_paired(by_seed([1, 1, -1, 2, 2, 0]), by_seed([0] * 6))
    assert found.wilcoxon == pytest.approx(2 * 4 / 32)
    assert found.p == pytest.approx(stats.ttest_1samp([1, 1, -1, 2, 2, 0], 0).pvalue)


def test_differences_that_rounding_alone_tells_apart_are_ties():
    exact = [1 / 9, -1 / 9, 2 / 9, 3 / 9, 3 / 9, 0]
    rounded = [0.11111, -0.11112, 0.22222, 0.33333, 0.33334, 0.00001]
    expected = stats.wilcoxon(exact).pvalue
    assert stats.wilcoxon(rounded).pvalue != pytest.approx(expected)
    found = compare_paired(by_seed(rounded), by_seed([0] * 6))
    assert found.wilcoxon == pytest.approx(expected)


@pytest.mark.parametrize("step", [0, 0.1, -2.5])
@pytest.mark.parametrize("n", [2, 7])
def test_differences_that_are_all_equal_have_no_p(step, n):
    """Subtraction rounds: 90.8 - 90.7 is not 91.41 - 91.31 bit for bit."""
    other = OTHER[:n]
    found = compare_paired(by_seed([value + step for value in other]), by_seed(other))
    assert found[:4] == pytest.approx((n, step, step, step))
    assert found[4:] == (None, None, "zero variance")
    assert verdict(found, None) == f"no test, every seed differs by {step:+.2f} points"


def test_one_seed_has_a_difference_and_no_more():
    found = compare_paired({3: 91.5, 4: 91}, {3: 91})
    assert found == Difference(1, 0.5, None, None, None, None, "n = 1")
    assert verdict(found, None) == "inconclusive (n = 1)"


def test_no_seed_in_common_is_said():
    found = compare_paired({3: 91.5}, {4: 91})
    assert found == Difference(0, None, None, None, None, None, "no seed in common")
    assert verdict(found, None) == "no seed in common"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.5]) == [1, None, 1]
    assert holm([None]) == [None]
    assert holm([]) == []


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_is_monotone_at_most_one_and_between_none_and_bonferroni(values):
    corrected = holm(values)
    pairs = [(p, c) for p, c in zip(values, corrected, strict=True) if p is not None]
    assert [c is None for c in corrected] == [p is None for p in values]
    assert [c for _, c in sorted(pairs)] == sorted(c for _, c in pairs)
    assert all(p <= c <= min(1, len(pairs) * p) for p, c in pairs)


@pytest.mark.parametrize(
    ("mean", "low", "high", "corrected", "told"),
    [
        (0.5, 0.2, 0.8, 0.01, "higher"),
        (-0.5, -0.8, -0.2, 0.01, "lower"),
        (3, 1, 5, 0.049, "higher"),
        (3, 1, 5, 0.05, "inconclusive (n = 5)"),
        (0.5, 0.1, 0.9, 0.2, "no difference beyond ±0.90 points"),
        (0.1, -0.551, 0.75, 0.9, "no difference beyond ±0.75 points"),
        (-0.1, -0.551, 0.35, 0.9, "no difference beyond ±0.56 points"),
        (0, -1, 1, 0.9, "no difference beyond ±1.00 points"),
        (0, -1.01, 0.9, 0.9, "inconclusive (n = 5)"),
    ],
)
def test_verdicts(mean, low, high, corrected, told):
    assert verdict(Difference(5, mean, low, high, 0.01, None, None), corrected) == told


def test_the_rule_is_told_with_its_numbers():
    assert all(text in state_rule() for text in ("below 0.05", "95 % interval", "±1 point", "Holm"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_any_counts_of_right_images_are_compared_without_a_warning(pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_paired(
            by_seed([one / 3 for one, _ in pairs]), by_seed([other / 3 for _, other in pairs])
        )
    assert (found.p is None) == (found.reason is not None)
    assert found.p is None or 0 <= found.p <= 1
    assert found.wilcoxon is None or 0 < found.wilcoxon <= 1
    assert found.low is None or found.low <= found.mean <= found.high


# Ten folds, whose training sets have nine times the images of a test set.
TEN = [0.3, 1.2, -0.1, 0.9, 0.6, 0.4, 1.5, 0.2, 0.8, 0.5]


def test_folds_are_compared_by_the_corrected_resampled_t_test():
    """Nadeau and Bengio (2003): t = mean / sqrt((1/J + n2/n1) * s^2), J - 1 degrees of freedom."""
    found = compare_paired(by_seed(TEN), by_seed([0.0] * 10), Repeats("fold", 1 / 9))
    # By hand: the sum is 6.3 and that of the squares 6.05, so s^2 = (6.05 - 3.969) / 9.
    assert found.mean == pytest.approx(0.63)
    t = 0.63 / math.sqrt((1 / 10 + 1 / 9) * 2.081 / 9)
    assert t == pytest.approx(2.851479, abs=1e-6)
    half = 2.262157163 * math.sqrt((1 / 10 + 1 / 9) * 2.081 / 9)  # the 97.5 % point of t(9)
    assert found.p == pytest.approx(2 * stats.t.sf(t, 9))
    assert 0.01 < found.p < 0.02  # a table has 2.821 and 3.250 for these
    assert (found.low, found.high) == pytest.approx((0.63 - half, 0.63 + half))
    assert found.wilcoxon is None


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_the_correction_divides_the_plain_t_by_a_known_factor(folds):
    """For K folds of equal size sqrt((1/K + 1/(K-1)) / (1/K)) = sqrt((2K - 1) / (K - 1))."""
    values, zeros = by_seed(TEN[:folds]), by_seed([0.0] * folds)
    plain = stats.ttest_1samp(TEN[:folds], 0)
    factor = math.sqrt((2 * folds - 1) / (folds - 1))
    found = compare_paired(values, zeros, Repeats("fold", 1 / (folds - 1)))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(plain.statistic) / factor, folds - 1))
    low, high = plain.confidence_interval(0.95)
    assert found.high - found.low == pytest.approx(factor * (high - low))
    assert summary(TEN[:folds], Repeats("fold", 1 / (folds - 1)))[2:] == pytest.approx(
        (summary(TEN[:folds]).deviation, found.low, found.high)
    )


@pytest.mark.hard
def test_folds_of_pure_noise_are_seldom_told_apart():
    """Overlapping training sets: the plain test errs several times as often as it says."""
    draw = random.Random(0)
    wrong = {"plain": 0, "corrected": 0}
    for _ in range(2000):
        shared = draw.gauss(0, math.sqrt(0.1))  # what the folds have in common: rho = 0.1
        values = by_seed([shared + draw.gauss(0, math.sqrt(0.9)) for _ in range(10)])
        zeros = dict.fromkeys(values, 0.0)
        wrong["plain"] += compare_paired(values, zeros).p < 0.05
        wrong["corrected"] += compare_paired(values, zeros, Repeats("fold", 1 / 9)).p < 0.05
    assert wrong["plain"] > 2000 * 0.1
    assert 2000 * 0.03 < wrong["corrected"] < 2000 * 0.07


def test_what_is_said_of_folds_says_folds():
    folds = Repeats("fold", 0.25)
    assert "corrected resampled t-test" in state_rule(folds)
    assert "the folds are too few" in state_rule(folds)
    assert "seed" not in state_rule(folds)
    assert compare_paired({1: 3.0}, {2: 1.0}, folds).reason == "no fold in common"
    same = compare_paired(by_seed([2.0, 2.0]), by_seed([1.0, 1.0]), folds)
    assert verdict(same, None, "fold") == "no test, every fold differs by +1.00 points"
    assert verdict(Difference(0), None, "fold") == "no fold in common"
