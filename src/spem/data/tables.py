"""A table of images as a CSV file: a path, a label and perhaps a split in each row."""

import csv
from pathlib import Path

import torch

from spem._messages import shorten, unknown
from spem.data.names import Names
from spem.data.reading import Listing
from spem.data.sources import Reading, Source

_SPLITS = {"train": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
_SHOWN = 3


def list_table(path: Path, how: Reading) -> Source:
    """Return the files of a CSV file with the columns `path`, `label` and perhaps `split`.

    Paths are relative to the folder of the file, or absolute. A split is train, test or val;
    without such a column the splits are drawn. Classes are the labels, sorted as texts.

    Raises:
        ValueError: a column or a file is missing, or a row has a split of another name.
    """
    rows = _read_rows(path)
    classes = tuple(sorted({label for _, label, _ in rows}))
    if len(classes) < 2:
        raise ValueError(f"{path} has {len(classes)} different labels; at least 2 are needed")
    numbers = {name: number for number, name in enumerate(classes)}
    listed = {}
    for split in dict.fromkeys(split for *_, split in rows):
        own = [row for row in rows if row[2] == split]
        labels = torch.tensor([numbers[label] for _, label, _ in own])
        listed[split] = Listing(Names.of(path.parent, [name for name, *_ in own]), labels)
    _refuse_missing(path, listed)
    if "train" not in listed:
        raise ValueError(f"{path} has no row whose split is train")
    names = {split: f"split {split}" for split in listed}
    return Source(
        str(path),
        classes,
        listed["train"],
        None if how.validation is None else listed.get("validation"),
        None if how.fold is not None else listed.get("test"),
        f"the rows of {path.name}" if "test" not in listed else "split train",
        names.get("train"),
        names.get("validation"),
        names.get("test"),
        ("split test",) if how.fold is not None and "test" in listed else (),
    )


def _read_rows(path: Path) -> list[tuple[str, str, str]]:
    """Return path, label and split of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            table = csv.DictReader(file)
            for column in ("path", "label"):
                if column not in (table.fieldnames or ()):
                    found = ", ".join(map(str, table.fieldnames or ()))[:200]
                    raise ValueError(f"{path} has no column '{column}'; it has: {found}")
            splits = "split" in (table.fieldnames or ())
            return [_read_row(path, table.line_num, row, splits) for row in table]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error


def _read_row(path: Path, line: int, row: dict[str, str], splits: bool) -> tuple[str, str, str]:
    name, label = row["path"], row["label"]
    if not name or not label or "\0" in name:
        raise ValueError(
            f"line {line} of {path} has the path {shorten(name)}, label {shorten(label)}"
        )
    if not splits:
        return name, label, "train"
    if row["split"] not in _SPLITS:
        raise ValueError(f"line {line} of {path}: {unknown('split', row['split'], _SPLITS)}")
    return name, label, _SPLITS[row["split"]]


def _refuse_missing(path: Path, listed: dict[str, Listing]) -> None:
    """Raise ValueError, naming the first, where files of a table are not there."""
    missing = [file for each in listed.values() for file in each.files if not file.is_file()]
    if missing:
        some = ", ".join(map(str, missing[:_SHOWN]))
        more = ", …" if len(missing) > _SHOWN else ""
        raise ValueError(f"{path} names files that are not there ({len(missing):,}): {some}{more}")
