"""The results: one CSV file a device, whose rows a new measurement replaces."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from spem._files import write_table
from spem.compare.timing import QUANTILES

Row = dict[str, str]
RUN = ("device", "processor", "torch", "spem", "threads")
CASE = ("group", "subject", "shape", "dtype", "format", "gate", "form", "way")
KEY = RUN + CASE
COLUMNS = (
    *KEY,
    "state",  # "ok", or why the case is red; a red one has no numbers
    "pairs",
    "seconds",
    "baseline",  # "plain" or "copy": what the ratio is to
    "baseline_seconds",
    *(f"ratio_{percent}" for percent in QUANTILES),
    *(f"noise_{percent}" for percent in QUANTILES),  # the baseline's twin / the baseline
    "memory",  # bytes that one run needs at a time
    "moved",  # bytes that must move
    "copy_share",  # of the measured bandwidth of a copy
    "copy_seconds",
    "copy_moved",
)


def default_path(device: str) -> Path:
    """Return `benchmarks/results/DEVICE.csv`, next to the code that measures."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return Path(__file__).parents[1] / "results" / f"{slug}.csv"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of results.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no results in {path}")
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is no table of benchmarks.bench: its columns are others")
        return list(table)


def merge(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write rows into a file; they replace those of the same device, versions and case.

    Raises:
        ValueError: the file is another table.
    """
    old = read_rows(path) if path.exists() else []
    table = {_key(row): row for row in old}
    for row in rows:
        text = {column: _text(row.get(column)) for column in COLUMNS}
        table[_key(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, [dict(row) for row in table.values()])


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
