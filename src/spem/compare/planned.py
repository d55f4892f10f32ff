"""The cells of a comparison: one run each, told apart by what decides it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from spem.train.checkpoint import FREE_KEYS
from spem.train.recipe import Recipe


class Cell(NamedTuple):
    """One run of a comparison.

    Attributes:
        key: hash of the recipe, without where and how it computes.
        gate, model, data, overrides: labels; overrides is "" where there are none.
        against: name of the row that it is compared with; None for a baseline.
        recipe: everything that decides the run.
    """

    key: str
    gate: str
    model: str
    data: str
    overrides: str
    against: str | None
    recipe: Recipe

    @property
    def row(self) -> str:
        """Name of the row that the cell's seeds share: the gate, and the overrides if any."""
        return row_name(self.gate, self.overrides)


def row_name(gate: str, overrides: str) -> str:
    """Return the name of a row in the tables: its gate, and its overrides if any."""
    return ", ".join(filter(None, (gate, overrides)))


def deciding(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a recipe that decide a run, without where and how it computes."""
    return {key: value for key, value in asdict(recipe).items() if key not in FREE_KEYS}


def key_of(recipe: Recipe) -> str:
    """Return the name of a run's folder: 16 hexadecimal digits of the hash of what decides it."""
    text = json.dumps(deciding(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_of(folder: Path, cell: Cell) -> Path:
    """Return the folder of a cell's run below that of its comparison."""
    return folder / "cells" / cell.key
