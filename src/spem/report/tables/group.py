"""The networks of one model and one data set: statistics, the table of results, what they tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from spem.compare.records import Record, number_of
from spem.gates import GATES
from spem.report.significance import (
    SEEDS,
    Difference,
    Repeats,
    Summary,
    compare_paired,
    holm,
    summary,
    verdict,
)
from spem.report.tables.cells import (
    TextCell,
    TextTable,
    difference_cell,
    make_cell,
    mean_cell,
    memory_cell,
    p_cell,
    percents,
    speed_cell,
)
from spem.report.tables.findings import (
    Comparison,
    format_interval,
    write_findings,
)
from spem.report.tables.mistakes import make_mistakes
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
        repeats: what the runs of a row differ in.
        compared: each row with its baseline.
        mistakes: tables of them, by their titles.
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
    repeats: Repeats
    compared: dict[str, Comparison]
    mistakes: dict[str, TextTable]


def make_group(
    model: str,
    data: str,
    records: Mapping[str, list[Record]],
    costs: dict[str, dict[str, Any]],
    method: Sequence[str] | None = None,
    mistakes: Mapping[str, dict[str, Any]] | None = None,
) -> Group:
    """Return the statistics of a group.

    Args:
        model: label.
        data: label.
        records: by row, those of failed runs included.
        costs: by row.
        method: the rows, or the gates, that the study is about; None: SPEM and gates of one's own.
        mistakes: of the runs, by their keys.
    """
    rows = {row: own for row, all_ in records.items() if (own := [r for r in all_ if r["summary"]])}
    values = {row: percents(own, "final_test_top1") for row, own in rows.items()}
    repeats = find_repeats([record for own in rows.values() for record in own])
    accuracy = {row: summary(list(own.values()), repeats) for row, own in values.items()}
    baselines = {row: own[0]["against"] for row, own in rows.items()}
    compared = _compare_rows(values, baselines, repeats)
    note = _COST.format(first=next(iter(costs))) if costs else _NO_COST
    tables = (
        _make_table(
            _result_columns(rows, accuracy, compared, repeats),
            [*_note_sizes(rows, repeats), *_note_diverged(rows, repeats)],
        ),
        _make_table(_cost_columns(rows, costs), [note]),
    )
    nothing = "No row is compared with another." if rows else "No run came to a result."
    findings = write_findings(compared) or [nothing]
    own = [row for row, (first, *_) in rows.items() if _is_own(row, first, method)]
    found = make_mistakes(rows, mistakes or {})
    return Group(
        model, data, rows, accuracy, costs, *tables, findings, own, repeats, compared, found
    )


def find_repeats(records: Sequence[Record]) -> Repeats:
    """Return what finished runs differ in; of folds, with the ratio of their mean sizes."""
    if not records or records[0]["recipe"].get("folds") is None:
        return SEEDS
    test, train = _count_images(records)
    return Repeats("fold", test / train)


def _count_images(records: Sequence[Record]) -> tuple[float, float]:
    """Return how many images a run tests and trains on, on average."""
    sizes = [record["summary"]["images"] for record in records]
    return fmean(each["test"] for each in sizes), fmean(each["train"] for each in sizes)


def _note_sizes(rows: Mapping[str, list[Record]], repeats: Repeats) -> list[str]:
    """Return a sentence about the number of images of the folds; none of seeds."""
    if not repeats.ratio:
        return []
    test, train = _count_images([record for own in rows.values() for record in own])
    return [
        f"A fold tests {test:,.0f} images and trains on {train:,.0f}: the variance of a mean over n"
        f" folds is taken as that of the folds times 1/n + {repeats.ratio:.3f}."
    ]


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
    values: Mapping[str, dict[int, float]],
    baselines: Mapping[str, str | None],
    repeats: Repeats,
) -> dict[str, Comparison]:
    """Compare the accuracies of each row, by seed or fold, with those of its baseline."""
    found = [
        Difference(0)
        if other is None
        else compare_paired(values[row], values.get(other, {}), repeats)
        for row, other in baselines.items()
    ]
    corrected = holm([each.p for each in found])
    words = [verdict(*each, repeats.word) for each in zip(found, corrected, strict=True)]
    return {
        row: Comparison(other, each, p, "baseline" if other is None else word)
        for (row, other), each, p, word in zip(
            baselines.items(), found, corrected, words, strict=True
        )
    }


def _result_columns(
    rows: Mapping[str, list[Record]],
    accuracy: Mapping[str, Summary],
    compared: Mapping[str, Comparison],
    repeats: Repeats,
) -> dict[str, list[TextCell]]:
    """Return the cells of the table of results, by the titles of its columns."""
    test = repeats.test.removesuffix("-test")
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
            difference_cell(each, several) for each in compared.values()
        ],
        f"p ({test}, Holm)": [p_cell(c.p, c.difference.reason) for c in compared.values()],
        "p (Wilcoxon)": [p_cell(each.difference.wilcoxon) for each in compared.values()],
        "verdict": [make_cell(each.verdict) for each in compared.values()],
    }


def _list_diverged(records: Sequence[Record]) -> list[int]:
    """Return the seeds, or the folds, of the runs that ended with an absurd loss."""
    losses = ("train_loss", "validation_loss", "test_loss")
    return [
        number_of(record)
        for record in records
        if max(record["history"].get(name, [0])[-1] or 0 for name in losses) > ABSURD_LOSS
    ]


def _note_diverged(rows: Mapping[str, list[Record]], repeats: Repeats) -> list[str]:
    """Return a sentence about the runs that ended with an absurd loss, if there are any."""
    found = {row: numbers for row, own in rows.items() if (numbers := _list_diverged(own))}
    runs = "; ".join(
        f"{row}, {repeats.word}s {', '.join(map(str, numbers))}" for row, numbers in found.items()
    )
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
        "training, images/s": [speed_cell(cost, "train") for cost in measured],
        "inference, images/s": [speed_cell(cost, "inference") for cost in measured],
        "memory of a training step, MiB": [memory_cell(cost) for cost in measured],
    }


def _mean_cells(rows: Mapping[str, list[Record]], key: str) -> list[TextCell]:
    return [mean_cell(own, key) for own in rows.values()]
