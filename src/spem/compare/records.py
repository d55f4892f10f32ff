"""The files of a comparison: a JSON line for each run, the study, and what the networks cost."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from spem._files import check_size, errors_name, write_text
from spem._messages import shorten
from spem._schema import (
    Bits,
    Column,
    Count,
    Few,
    Large,
    Natural,
    NonNegative,
    Options,
    Seed,
    Text,
    Texts,
    check_mapping,
    check_value,
    parse_json,
)
from spem._yaml import parse_yaml, read_text
from spem.compare.planned import PlannedRun, row_name
from spem.train.identity import deciding_keys, repeat_name
from spem.train.summary import Summary, read_summary

Record = dict[str, Any]
# Of records.jsonl: those of 10,000 runs with 1,000 epochs each take about as much.
_MOST_BYTES = 1 << 30


class _Recipe(TypedDict):
    """What a report reads of the recipe of a record."""

    model: Text
    gate: Text | None
    gate_options: Options
    block: Text | None
    placement: Text | None
    mask: Bits | None
    data: Text
    epochs: Count
    seed: Seed
    folds: NotRequired[Count | None]
    fold: NotRequired[Count | None]


class _History(TypedDict):
    """What a report reads of the epochs of a record; every other column is such a one, too."""

    epoch: Column
    test_top1: Column


class _Record(TypedDict):
    """A line of `records.jsonl`."""

    key: Text
    gate: Text
    model: Text
    data: Text
    overrides: Text
    against: Text | None
    seed: Seed
    recipe: _Recipe
    summary: Summary | None
    history: _History | None
    error: Text | None


class _Spread(TypedDict):
    """Median and quartiles of a cost."""

    median: NonNegative
    low: NonNegative
    high: NonNegative


class _Cost(TypedDict):
    """A line of `costs.jsonl`."""

    model: Text
    data: Text
    gate: Text
    overrides: Text
    train: _Spread
    train_ratio: _Spread
    inference: _Spread
    inference_ratio: _Spread
    memory: Large | None
    rounds: Count
    batch_size: Count
    threads: Few
    device: Text
    kernels: Text
    torch: Text
    spem: Text


class _Study(TypedDict, total=False):
    """What `spem compare` writes into `study.yaml`."""

    title: Text | None
    question: Text | None
    method: Texts | None
    planned: Natural | None
    commands: Texts | None


class Ledger:
    """The file `records.jsonl` of a folder, and the records in it.

    A record has the labels `gate`, `model`, `data` and `overrides` of its planned run, the row
    `against` which the run is compared (None for a baseline), `seed`, the resolved `recipe` without
    where it ran, `summary` (of the run's `summary.json`), `history` (columns of `metrics.csv`, one
    value an epoch) and `error`: why a run failed, in which case the two before are None.

    A line that a crash cut off, or that is no record, goes to `records.damaged`. Nothing is lost:
    where the run's folder is still there, its record is written again.

    Args:
        folder: of the comparison.

    Attributes:
        records: the last record of each key, in the order of their first lines.
        damaged: the lines that are not records.
        reason: what is wrong with the first of them; None without any.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "records.jsonl"
        self.records: dict[str, Record] = {}
        self.damaged: list[str] = []
        self.reason: str | None = None
        text = ""
        if self.path.exists():
            check_size(self.path, _MOST_BYTES)
            text = self.path.read_text(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = _parse_record(line)
            except ValueError as error:
                self.damaged.append(line)
                self.reason = self.reason or f"line {number}: {error}"
            else:
                self.records[record["key"]] = record
        self._cut_off = bool(text) and not text.endswith("\n")

    def repair(self) -> None:
        """Move the lines that are not records to `records.damaged`."""
        if self.damaged:
            with (self.folder / "records.damaged").open("a") as file:
                file.writelines(f"{line}\n" for line in self.damaged)
        if self.damaged or self._cut_off:
            write_text(self.path, "".join(map(_line, self.records.values())))

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        with errors_name(self.path), self.path.open("a") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _parse_record(line: str) -> Record:
    """Return the record of a line; raises ValueError where it is none."""
    record = parse_json(line, _Record)
    _check_record(record)
    return record


def _check_record(record: Record) -> None:
    """Raise ValueError unless a record has a result or an error, and one value an epoch."""
    if (record["summary"] is None) != (record["history"] is None):
        raise ValueError("a record has both of summary and history, or none of them")
    if record["summary"] is None and record["error"] is None:
        raise ValueError("a record without a summary must have an error")
    for name, column in (record["history"] or {}).items():
        check_value(f"history.{name}", column, Column)
        if len(column) != len(record["history"]["epoch"]):
            raise ValueError(f"history.{name} must have as many values as history.epoch")


def make_record(run: PlannedRun, folder: Path) -> Record:
    """Return the record of a finished run.

    Args:
        run: as it was planned.
        folder: of the run, with its summary and metrics.
    """
    try:
        check_size(folder / "metrics.csv")
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        history = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise ValueError(f"{folder / 'metrics.csv'} is damaged: {shorten(str(error))}") from error
    summary = read_summary(folder)
    summary.pop("files", None)  # sums of the folder's files, which a record does without
    record = _label(run) | {"summary": summary, "history": history, "error": None}
    _check_record(record)
    return record


def make_failure(run: PlannedRun, error: str) -> Record:
    """Return the record of a run that failed, with the sentence that says why."""
    return _label(run) | {"summary": None, "history": None, "error": error[:2000]}


def relabel(record: Record, run: PlannedRun) -> Record | None:
    """Return a record under the labels of a planned run of its key; None if it has them already."""
    renamed = record | _label(run)
    return None if renamed == record else renamed


def _label(run: PlannedRun) -> Record:
    """Return the part of a record that is known before the run."""
    labels = run._asdict()
    recipe = labels.pop("recipe")
    return labels | {"seed": recipe.seed, "recipe": deciding_keys(recipe)}


def _number(text: str) -> float | int | None:
    if text.isdigit():
        return int(text)
    return float(f"{float(text):.6g}") if text else None


def row_of(record: Record) -> str:
    """Return the name of a record's row in the tables: its gate, and its overrides if any."""
    return row_name(record["gate"], record["overrides"])


def repeat_of(record: Record) -> str:
    """Return what tells a record from the others of its row: "seed 3" or "fold 2 of 5"."""
    recipe = record["recipe"]
    return repeat_name(record["seed"], recipe.get("fold"), recipe.get("folds"))


def number_of(record: Record) -> int:
    """Return the number of a record's fold, or without folds its seed: runs are paired by it."""
    return record["recipe"].get("fold") or record["seed"]


def group_records(records: Iterable[Record]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    """Return records by (model, data) and then by row, in their order."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        rows = found.setdefault((record["model"], record["data"]), {})
        rows.setdefault(row_of(record), []).append(record)
    return found


def read_study(folder: Path) -> dict[str, Any]:
    """Return what `study.yaml` says of a comparison: title, question, method, runs, commands.

    Raises:
        ValueError: `spem compare` cannot have written this file.
    """
    path = folder / "study.yaml"
    study = parse_yaml(read_text(path, str(path)), str(path)) if path.exists() else {}
    try:
        check_mapping("", study, _Study)
    except ValueError as error:
        raise ValueError(f"{path} is none that spem compare writes: {error}") from error
    return study


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """Return what `costs.jsonl` holds: one object for each row, see `costs.measure_costs`.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "costs.jsonl"
    try:
        if not path.exists():
            return []
        check_size(path)
        lines = path.read_text(errors="replace").splitlines()
        return [parse_json(line, _Cost) for line in lines]
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: remove it, and the same spem compare measures again ({error})"
        ) from error
