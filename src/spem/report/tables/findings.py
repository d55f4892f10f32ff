"""What the comparisons of a group tell, in sentences."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from spem.report.significance import (
    CONFIDENCE,
    UNDECIDED,
    Difference,
    Summary,
    read_interval,
)

_POINTS = re.compile(r"([±+-]\d+\.\d+) points")
_READ_OUT = 4  # intervals, each in words


class Comparison(NamedTuple):
    """The baseline of a row (None for a baseline), the difference to it, p by Holm, the verdict."""

    baseline: str | None
    difference: Difference
    p: float | None
    verdict: str


def format_interval(found: Summary | Difference, sign: str = "") -> str:
    """Return an interval in brackets, "" without one; with `sign` "+" its ends have signs."""
    low, high = found.low, found.high
    return "" if low is None or high is None else f"[{low:{sign}z.2f}, {high:{sign}z.2f}]"


def format_p(p: float) -> str:
    """Return a p-value in three digits."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def write_findings(compared: Mapping[str, Comparison]) -> list[str]:
    """Return a sentence for each row that differs, and one for all others with a like verdict."""
    sentences = []
    undecided: dict[tuple[str, str], dict[str, Comparison]] = {}
    for row, (baseline, own, p, word) in compared.items():
        if baseline is None:
            continue
        interval = format_interval(own, "+")
        if word in ("higher", "lower") and own.mean is not None and p is not None:
            sentences.append(
                f"{row} is {word} than {baseline} by {abs(own.mean):.2f} points (interval"
                f" {interval}, n = {own.n}, p {'' if p < 0.001 else '= '}{format_p(p)})."
            )
            continue
        undecided.setdefault((baseline, _POINTS.sub("", word)), {})[row] = compared[row]
    return sentences + [
        f"Against {baseline}, {_join_verdicts(verdicts)}."
        for (baseline, _), verdicts in undecided.items()
    ]


def _join_verdicts(compared: Mapping[str, Comparison]) -> str:
    """Return verdicts that differ in their points alone as one clause."""
    words = {row: each.verdict for row, each in compared.items()}
    first = next(iter(words.values()))
    if first.startswith(UNDECIDED) and not first.endswith("(n = 1)"):
        intervals = {row: each.difference for row, each in compared.items()}
        return f"{first}: with {100 * CONFIDENCE:g} % confidence {_read_intervals(intervals)}"
    if len(set(words.values())) == 1:
        return f"{first}: {', '.join(words)}"
    points = {row: match[1] for row, each in words.items() if (match := _POINTS.search(each))}
    rows = ", ".join(f"{row} ({own})" for row, own in points.items())
    return f"{_POINTS.sub('the points in brackets', first)}: {rows}"


def _read_intervals(differences: Mapping[str, Difference]) -> str:
    """Return intervals in words; of many that hold zero, the widest ends stand for all."""
    ends = {row: (own.low or 0.0, own.high or 0.0) for row, own in differences.items()}
    around = {row: (low, high) for row, (low, high) in ends.items() if low <= 0 <= high}
    clauses = [
        f"{row} is {read_interval(*ends[row])}, before the correction for several comparisons"
        for row in ends
        if row not in around
    ]
    if len(around) <= _READ_OUT:
        clauses += [f"{row} is {read_interval(*own)}" for row, own in around.items()]
    else:
        lows, highs = zip(*around.values(), strict=True)
        clauses.append(f"each of {', '.join(around)} is {read_interval(min(lows), max(highs))}")
    return "; ".join(clauses)
