"""The networks of one model and one data set: statistics, the table of results, what they tell."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from spem.compare.records import Record
from spem.report.significance import (
    UNDECIDED,
    Difference,
    Summary,
    compare_paired,
    holm,
    summary,
    verdict,
)

_RESULTS = [
    "gate",
    "n",
    "final test top-1, %",
    "95 % interval",
    "difference to the baseline, points",
    "p (paired t, Holm)",
    "p (Wilcoxon)",
    "verdict",
    "at the best validation epoch, %",
    "best test epoch, % (as the paper reports)",
    "parameters",
    "multiply-adds",
    "training, images/s",
    "inference, images/s",
    "memory of a training step, MiB",
]
_COST = (
    "Speeds and memory were measured after the runs, one network at a time, in turns: median"
    " [quartiles] of the rounds; × is the time over that of {first}, paired by round."
)
_POINTS = re.compile(r"([±+-]\d+\.\d+) points")
_NO_COST = "Speed and memory were not measured."


@dataclass(frozen=True)
class TextCell:
    """What a cell of a table shows, and what the table is sorted by; None comes last."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True)
class TextTable:
    """A table, and the sentences below it."""

    header: list[str]
    rows: list[list[TextCell]]
    notes: list[str]


@dataclass(frozen=True)
class Group:
    """All networks of one model and one data set.

    Attributes:
        model, data: labels.
        rows: the records of finished runs by row.
        failed: the records of runs that came to no result.
        accuracy: final test top-1 in percent, by row.
        differences: of a row and its baseline, in points, by row.
        costs: of `costs.jsonl`, by row; empty where nothing was measured.
        table: the results.
        findings: sentences that say what the verdicts are.
    """

    model: str
    data: str
    rows: dict[str, list[Record]]
    failed: list[Record]
    accuracy: dict[str, Summary]
    differences: dict[str, Difference]
    costs: dict[str, dict[str, Any]]
    table: TextTable
    findings: list[str]


class _Comparison(NamedTuple):
    """A row's baseline, the difference to it, its p after Holm's correction, and the verdict."""

    baseline: str
    difference: Difference
    corrected: float | None
    verdict: str


def make_group(
    model: str, data: str, records: Mapping[str, list[Record]], costs: dict[str, dict[str, Any]]
) -> Group:
    """Return the statistics of a group.

    Args:
        model: label.
        data: label.
        records: by row, those of failed runs included.
        costs: by row.
    """
    rows = {row: own for row, all_ in records.items() if (own := [r for r in all_ if r["summary"]])}
    compared = _compare(rows)
    accuracy = {row: _summary(own, "final_test_top1") for row, own in rows.items()}
    several = len({each.baseline for each in compared.values()}) > 1
    cells = [
        [
            *_accuracy_cells(row, accuracy[row]),
            *_comparison_cells(compared.get(row), several),
            _mean_cell(own, "test_top1_at_best_validation"),
            _mean_cell(own, "best_test_top1"),
            *_cost_cells(own[0]["summary"], costs.get(row)),
        ]
        for row, own in rows.items()
    ]
    note = _COST.format(first=next(iter(costs))) if costs else _NO_COST
    findings = _findings(compared)
    if not findings:
        findings = ["No row is compared with another." if rows else "No run came to a result."]
    return Group(
        model=model,
        data=data,
        rows=rows,
        failed=[r for all_ in records.values() for r in all_ if not r["summary"]],
        accuracy=accuracy,
        differences={row: each.difference for row, each in compared.items()},
        costs=costs,
        table=_without_empty_columns(TextTable(_RESULTS, cells, [note])),
        findings=findings,
    )


def _without_empty_columns(table: TextTable) -> TextTable:
    kept = [
        place
        for place in range(len(table.header))
        if not table.rows or any(row[place].text != "-" for row in table.rows)
    ]
    rows = [[row[place] for place in kept] for row in table.rows]
    return TextTable([table.header[place] for place in kept], rows, table.notes)


def _compare(rows: Mapping[str, list[Record]]) -> dict[str, _Comparison]:
    values = {row: percents(own, "final_test_top1") for row, own in rows.items()}
    others = {row: own[0]["against"] for row, own in rows.items() if own[0]["against"] is not None}
    found = {
        row: compare_paired(values[row], values.get(other, {})) for row, other in others.items()
    }
    corrected = holm([each.p for each in found.values()])
    return {
        row: _Comparison(others[row], each, p, verdict(each, p))
        for (row, each), p in zip(found.items(), corrected, strict=True)
    }


def percents(records: Sequence[Record], key: str) -> dict[int, float]:
    """Return an accuracy of a summary in percent, by seed; runs without it are left out."""
    found = {record["seed"]: record["summary"][key] for record in records}
    return {seed: 100 * value for seed, value in found.items() if value is not None}


def spread(found: Summary) -> str:
    """Return mean and deviation as a table shows them."""
    return f"{found.mean:.2f}" + ("" if found.deviation is None else f" ± {found.deviation:.2f}")


def _summary(records: Sequence[Record], key: str) -> Summary:
    return summary(list(percents(records, key).values()))


def _accuracy_cells(row: str, found: Summary) -> list[TextCell]:
    return [
        TextCell(row, row),
        TextCell(str(found.n), found.n),
        TextCell(spread(found), found.mean),
        TextCell(_interval(found.low, found.high) or "- (n = 1)", found.low),
    ]


def _comparison_cells(compared: _Comparison | None, several: bool) -> list[TextCell]:
    if compared is None:
        return [*[TextCell("-")] * 3, TextCell("baseline", "baseline")]
    found, p = compared.difference, compared.corrected
    difference = "-"
    if found.mean is not None:
        interval = _interval(found.low, found.high, sign="+")
        baseline = f"to {compared.baseline}" if several else ""
        difference = " ".join(filter(None, (f"{found.mean:+.2f}", interval, baseline)))
    return [
        TextCell(difference, found.mean),
        TextCell(f"- ({found.reason})" if p is None else _p(p), p),
        TextCell("-" if found.wilcoxon is None else _p(found.wilcoxon), found.wilcoxon),
        TextCell(compared.verdict, compared.verdict),
    ]


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"[{low:{sign}.2f}, {high:{sign}.2f}]"


def _mean_cell(records: Sequence[Record], key: str) -> TextCell:
    if not percents(records, key):
        return TextCell("-")
    found = _summary(records, key)
    return TextCell(spread(found), found.mean)


def _cost_cells(own: dict[str, Any], cost: dict[str, Any] | None) -> list[TextCell]:
    cells = [TextCell(f"{own[key]:,}", own[key]) for key in ("parameters", "macs")]
    if cost is None:
        return [*cells, TextCell("-"), TextCell("-"), TextCell("-")]
    for kind in ("train", "inference"):
        speed, ratio = cost[kind], cost[f"{kind}_ratio"]["median"]
        text = f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}], ×{ratio:.2f}"
        cells.append(TextCell(text, speed["median"]))
    memory = cost["memory"]
    return [*cells, TextCell("-" if memory is None else f"{memory / 2**20:,.1f}", memory)]


def _findings(compared: Mapping[str, _Comparison]) -> list[str]:
    """Return a sentence for each row that differs, and one for all others with a like verdict."""
    sentences = []
    undecided: dict[tuple[str, str], dict[str, str]] = {}
    for row, (baseline, own, p, word) in compared.items():
        if word not in ("higher", "lower") or own.mean is None or p is None:
            clear = word == UNDECIDED and own.low is not None and own.low * (own.high or 0) > 0
            far = f" ({own.mean:+.2f} {_interval(own.low, own.high, sign='+')})" if clear else ""
            undecided.setdefault((baseline, _POINTS.sub("", word)), {})[f"{row}{far}"] = word
            continue
        sentences.append(
            f"{row} is {word} than {baseline} by {abs(own.mean):.2f} points"
            f" (interval {_interval(own.low, own.high, sign='+')}, n = {own.n},"
            f" p {'' if p < 0.001 else '= '}{_p(p)})."
        )
    sentences += [
        f"Against {baseline}, {_join_verdicts(verdicts)}."
        for (baseline, _), verdicts in undecided.items()
    ]
    return sentences


def _join_verdicts(verdicts: Mapping[str, str]) -> str:
    """Return verdicts that differ in their points alone as one clause."""
    first = next(iter(verdicts.values()))
    if len(set(verdicts.values())) == 1:
        return f"{first}: {', '.join(verdicts)}"
    points = {row: match[1] for row, each in verdicts.items() if (match := _POINTS.search(each))}
    rows = ", ".join(f"{row} ({own})" for row, own in points.items())
    return f"{_POINTS.sub('the points in brackets', first)}: {rows}"
