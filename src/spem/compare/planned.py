"""The planned runs of a comparison, told apart by the recipe keys that decide their results."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from spem.train.checkpoint import FREE_KEYS
from spem.train.recipe import Recipe

# Keys that recipes of earlier versions lack, each with the value that means what these did: with it
# a run keeps the key that it had there.
NEW_KEYS = {"on_bad_image": "raise"}


class PlannedRun(NamedTuple):
    """One run of a comparison.

    Attributes:
        key: hash of the recipe, without the keys that say where and how it computes.
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
        """Name of the table row that the run shares with those of other seeds."""
        return row_name(self.gate, self.overrides)

    def folder_in(self, comparison: Path) -> Path:
        """Return the folder of the run below the folder of its comparison."""
        return comparison / "cells" / self.key


def row_name(gate: str, overrides: str) -> str:
    """Return the name of a row in the tables: its gate, and its overrides if there are any."""
    return ", ".join(filter(None, (gate, overrides)))


def deciding_keys(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe keys that decide a run's results, without where and how it computes."""
    return {
        key: value
        for key, value in asdict(recipe).items()
        if key not in FREE_KEYS and not (key in NEW_KEYS and value == NEW_KEYS[key])
    }


def record_key(recipe: Recipe) -> str:
    """Return the key of a run's record and folder: 16 hexadecimal digits of a hash of its recipe.

    Only `deciding_keys` enter the hash, so the same run on another machine has the same key.
    """
    text = json.dumps(deciding_keys(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
