"""The cells of a report's tables: what they show, and what the tables are sorted by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spem.compare.records import Record, number_of
from spem.report.significance import summary
from spem.report.tables.findings import Comparison, format_interval, format_p


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


def percents(records: Sequence[Record], key: str) -> dict[int, float]:
    """Return an accuracy of a summary in percent, by seed or fold; runs without it are left out."""
    found = {number_of(record): record["summary"][key] for record in records}
    return {number: 100 * value for number, value in found.items() if value is not None}


def make_cell(value: str | int | None) -> TextCell:
    """Return the cell of a value, by which the table is sorted."""
    return TextCell("-" if value is None else str(value), value)


def mean_cell(records: Sequence[Record], key: str) -> TextCell:
    """Return the cell of an accuracy in percent: its mean and deviation over the runs."""
    values = percents(records, key).values()
    if not values:
        return TextCell("-")
    found = summary(list(values))
    deviation = "" if found.deviation is None else f" ± {found.deviation:.2f}"
    return TextCell(f"{found.mean:.2f}{deviation}", found.mean)


def difference_cell(compared: Comparison, several: bool) -> TextCell:
    """Return the cell of a difference; the baseline is named where a table has several."""
    mean = compared.difference.mean
    if mean is None:
        return TextCell("-")
    baseline = f"to {compared.baseline}" if several else ""
    words = (f"{mean:+z.2f}", format_interval(compared.difference, "+"), baseline)
    return TextCell(" ".join(filter(None, words)), mean)


def p_cell(p: float | None, reason: str | None = None) -> TextCell:
    """Return the cell of a p-value, or of the reason why there is none."""
    missing = f"- ({reason})" if reason else "-"
    return TextCell(missing if p is None else format_p(p), p)


def speed_cell(cost: dict[str, Any] | None, kind: str) -> TextCell:
    """Return the cell of the speed of a kind of work: train or inference."""
    if cost is None:
        return TextCell("-")
    speed, ratio = cost[kind], cost[f"{kind}_ratio"]["median"]
    text = f"{speed['median']:,.0f} [{speed['low']:,.0f}, {speed['high']:,.0f}], ×{ratio:.2f}"
    return TextCell(text, speed["median"])


def memory_cell(cost: dict[str, Any] | None) -> TextCell:
    """Return the cell of the memory of a training step."""
    if cost is None or cost["memory"] is None:
        return TextCell("-")
    return TextCell(f"{cost['memory'] / 2**20:,.1f}", cost["memory"])
