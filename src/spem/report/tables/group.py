"""The networks of one model and one data set: statistics, the table of results, what they tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spem.compare.records import Record
from spem.gates import GATES
from spem.report.significance import (
    Difference,
    Summary,
    compare_paired,
    holm,
    summary,
    verdict,
)
from spem.report.tables.findings import (
    Comparison,
    format_interval,
    format_p,
    write_findings,
)
from spem.train.summary import ABSURD_LOSS

_DIVERGED = "(!)"
_COST = (
    "Speeds and memory were measured after the runs, one network at a time, in turns: median"
    " [quartiles] of the rounds; × is the time over that of {first}, paired by round. The option"
    " --no-costs of spem compare leaves this out."
)
_NO_COST = (
    "Speed and memory were not measured: spem compare does so after its last run, unless it is"
    " given --no-costs."
)


@dataclass(frozen=True)
class TextCell:
    """What a cell of a table shows, and what the table is sorted by; None comes last."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True)
class TextTable:
    """A table, and the sentences below it."""

    header: list[str]
    rows: list[Sequence[TextCell]]
    notes: list[str]

    def numeric_columns(self) -> list[int]:
        """Return the places of the columns without texts to sort by."""
        columns = enumerate(zip(*self.rows, strict=True))
        return [i for i, cells in columns if not any(isinstance(cell.sort, str) for cell in cells)]


@dataclass(frozen=True)
class Group:
    """All networks of one model and one data set.

    Attributes:
        model, data: labels.
        rows: the records of finished runs by row.
        accuracy: final test top-1 in percent, by row.
        costs: of `costs.jsonl`, by row; empty where nothing was measured.
        table: the results.
        cost_table: what the networks cost, and their accuracy at other epochs than the last.
        findings: sentences that say what the verdicts are.
        own: the rows of the method that the study is about.
    """

    model: str
    data: str
    rows: dict[str, list[Record]]
    accuracy: dict[str, Summary]
    costs: dict[str, dict[str, Any]]
    table: TextTable
    cost_table: TextTable
    findings: list[str]
    own: list[str]


def make_group(
    model: str,
    data: str,
    records: Mapping[str, list[Record]],
    costs: dict[str, dict[str, Any]],
    method: Sequence[str] | None = None,
) -> Group:
    """Return the statistics of a group.

    Args:
        model: label.
        data: label.
        records: by row, those of failed runs included.
        costs: by row.
        method: the rows, or the gates, that the study is about; None: SPEM and gates of one's own.
    """
    rows = {row: own for row, all_ in records.items() if (own := [r for r in all_ if r["summary"]])}
    values = {row: percents(own, "final_test_top1") for row, own in rows.items()}
    accuracy = {row: summary(list(own.values())) for row, own in values.items()}
    compared = _compare_rows(values, {row: own[0]["against"] for row, own in rows.items()})
    note = _COST.format(first=next(iter(costs))) if costs else _NO_COST
    tables = (
        _make_table(_result_columns(rows, accuracy, compared), _note_diverged(rows)),
        _make_table(_cost_columns(rows, costs), [note]),
    )
    nothing = "No row is compared with another." if rows else "No run came to a result."
    findings = write_findings(compared) or [nothing]
    own = [row for row, (first, *_) in rows.items() if _is_own(row, first, method)]
    return Group(model, data, rows, accuracy, costs, *tables, findings, own)


def _is_own(row: str, record: Record, method: Sequence[str] | None) -> bool:
    if method is not None:
        return row in method or record["gate"] in method
    gate = record["recipe"]["gate"]
    shipped = gate is None or getattr(GATES.get(gate), "__module__", "").startswith("spem.")
    return gate == "spem" or not shipped


def _make_table(columns: Mapping[str, list[TextCell]], notes: list[str]) -> TextTable:
    """Return the table of some columns, without those that are empty."""
    shown = {
        title: cells
        for title, cells in columns.items()
        if not cells or any(cell.text != "-" for cell in cells)
    }
    return TextTable(list(shown), list(zip(*shown.values(), strict=True)), notes)


def _compare_rows(
    values: Mapping[str, dict[int, float]], baselines: Mapping[str, str | None]
) -> dict[str, Comparison]:
    """Compare the accuracies of each row, by seed, with those of its baseline."""
    found = [
        Difference(0) if other is None else compare_paired(values[row], values.get(other, {}))
        for row, other in baselines.items()
    ]
    corrected = holm([each.p for each in found])
    return {
        row: Comparison(other, each, p, "baseline" if other is None else verdict(each, p))
        for (row, other), each, p in zip(baselines.items(), found, corrected, strict=True)
    }


def _result_columns(
    rows: Mapping[str, list[Record]],
    accuracy: Mapping[str, Summary],
    compared: Mapping[str, Comparison],
) -> dict[str, list[TextCell]]:
    """Return the cells of the table of results, by the titles of its columns."""
    several = len({each.baseline for each in compared.values()} - {None}) > 1
    return {
        "gate": [
            TextCell(f"{row} {_DIVERGED}" if _list_diverged(own) else row, row)
            for row, own in rows.items()
        ],
        "n": [make_cell(each.n) for each in accuracy.values()],
        "final test top-1, %": _mean_cells(rows, "final_test_top1"),
        "95 % interval": [
            TextCell(format_interval(each) or "- (n = 1)", each.low) for each in accuracy.values()
        ],
        "difference to the baseline, points": [
            _difference_cell(each, several) for each in compared.values()
        ],
        "p (paired t, Holm)": [_p_cell(c.p, c.difference.reason) for c in compared.values()],
        "p (Wilcoxon)": [_p_cell(each.difference.wilcoxon) for each in compared.values()],
        "verdict": [make_cell(each.verdict) for each in compared.values()],
    }


def _list_diverged(records: Sequence[Record]) -> list[int]:
    """Return the seeds of the runs that ended with an absurd loss."""
    losses = ("train_loss", "validation_loss", "test_loss")
    return [
        record["seed"]
        for record in records
        if max(record["history"].get(name, [0])[-1] or 0 for name in losses) > ABSURD_LOSS
    ]


def _note_diverged(rows: Mapping[str, list[Record]]) -> list[str]:
    """Return a sentence about the runs that ended with an absurd loss, if there are any."""
    found = {row: seeds for row, own in rows.items() if (seeds := _list_diverged(own))}
    runs = "; ".join(f"{row}, seeds {', '.join(map(str, seeds))}" for row, seeds in found.items())
    sentence = f"{_DIVERGED} A run has diverged, its last loss is above {ABSURD_LOSS:g}: {runs}."
    return [sentence] if found else []


def _cost_columns(
    rows: Mapping[str, list[Record]], costs: Mapping[str, dict[str, Any]]
) -> dict[str, list[TextCell]]:
    """Return the cells of the table of costs, by the titles of its columns."""
    summaries = [own[0]["summary"] for own in rows.values()]
    measured = [costs.get(row) for row in rows]
    return {
        "gate": [make_cell(row) for row in rows],
        "at the best validation epoch, %": _mean_cells(rows, "test_top1_at_best_validation"),
        "best test epoch, % (as the paper reports)": _mean_cells(rows, "best_test_top1"),
        "parameters": [TextCell(f"{own['parameters']:,}", own["parameters"]) for own in summaries],
        "multiply-adds": [TextCell(f"{own['macs']:,}", own["macs"]) for own in summaries],
        "training, images/s": [_speed_cell(cost, "train") for cost in measured],
        "inference, images/s": [_speed_cell(cost, "inference") for cost in measured],
        "memory of a training step, MiB": [_memory_cell(cost) for cost in measured],
    }


def percents(records: Sequence[Record], key: str) -> dict[int, float]:
    """Return an accuracy of a summary in percent, by seed; runs without it are left out."""
    found = {record["seed"]: record["summary"][key] for record in records}
    return {seed: 100 * value for seed, value in found.items() if value is not None}


def make_cell(value: str | int | None) -> TextCell:
    """Return the cell of a value, by which the table is sorted."""
    return TextCell("-" if value is None else str(value), value)


def mean_cell(records: Sequence[Record], key: str) -> TextCell:
    """Return the cell of an accuracy in percent: its mean and deviation over the seeds."""
    values = percents(records, key).values()
    if not values:
        return TextCell("-")
    found = summary(list(values))
    deviation = "" if found.deviation is None else f" ± {found.deviation:.2f}"
    return TextCell(f"{found.mean:.2f}{deviation}", found.mean)


def _mean_cells(rows: Mapping[str, list[Record]], key: str) -> list[TextCell]:
    return [mean_cell(own, key) for own in rows.values()]


def _difference_cell(compared: Comparison, several: bool) -> TextCell:
    """Return the cell of a difference; the baseline is named where a table has several."""
    mean = compared.difference.mean
    if mean is None:
        return TextCell("-")
    baseline = f"to {compared.baseline}" if several else ""
    words = (f"{mean:+z.2f}", format_interval(compared.difference, "+"), baseline)
    return TextCell(" ".join(filter(None, words)), mean)


def _p_cell(p: float | None, reason: str | None = None) -> TextCell:
    missing = f"- ({reason})" if reason else "-"
    return TextCell(missing if p is None else format_p(p), p)


def _speed_cell(cost: dict[str, Any] | None, kind: str) -> TextCell:
    if cost is None:
        return TextCell("-")
    speed, ratio = cost[kind], cost[f"{kind}_ratio"]["median"]
    text = f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}], ×{ratio:.2f}"
    return TextCell(text, speed["median"])


def _memory_cell(cost: dict[str, Any] | None) -> TextCell:
    if cost is None or cost["memory"] is None:
        return TextCell("-")
    return TextCell(f"{cost['memory'] / 2**20:,.1f}", cost["memory"])
