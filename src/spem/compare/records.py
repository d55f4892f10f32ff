"""The files of a comparison: a JSON line for each run, the study, and what the networks cost."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spem._files import write_text
from spem._yaml import parse_yaml, read_text
from spem.compare.planned import PlannedRun, row_name
from spem.train.identity import deciding_keys

Record = dict[str, Any]
_KEYS = {*PlannedRun._fields, "seed", "summary", "history", "error"}
_STUDY = {"title": (str, "text"), "question": (str, "text")}
_STUDY |= {"planned": (int, "whole number"), "commands": (list, "list"), "method": (list, "list")}
_COSTS = {"model", "data", "gate", "overrides", "train", "train_ratio", "inference"}
_COSTS |= {"inference_ratio", "memory", "device", "threads", "kernels", "batch_size", "rounds"}
_COSTS |= {"torch", "spem"}


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
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "records.jsonl"
        self.records: dict[str, Record] = {}
        self.damaged: list[str] = []
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        for line in text.splitlines():
            if record := _parse(line, _KEYS):
                self.records[record["key"]] = record
            else:
                self.damaged.append(line)
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
        with self.path.open("a") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _parse(line: str, keys: set[str]) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if the line is damaged or lacks one of the keys."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= keys else None


def make_record(run: PlannedRun, folder: Path) -> Record:
    """Return the record of a finished run.

    Args:
        run: as it was planned.
        folder: of the run, with its summary and metrics.
    """
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    history = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("files", None)  # sums of the folder's files, which a record does without
    return _label(run) | {"summary": summary, "history": history, "error": None}


def make_failure(run: PlannedRun, error: str) -> Record:
    """Return the record of a run that failed, with the sentence that says why."""
    return _label(run) | {"summary": None, "history": None, "error": error}


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
    for key, (kind, name) in _STUDY.items():
        if not isinstance(study.get(key), kind | None):
            raise ValueError(f"{key} of {path} is {study[key]!r}, must be a {name}")
    return study


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """Return what `costs.jsonl` holds: one object for each row, see `costs.measure_costs`.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "costs.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    costs = [cost for line in lines if (cost := _parse(line, _COSTS)) is not None]
    if len(costs) < len(lines):
        raise ValueError(f"{path} is damaged: remove it, and the same spem compare measures again")
    return costs
