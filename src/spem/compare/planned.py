"""The planned runs of a comparison, told apart by the recipe keys that decide their results."""

from pathlib import Path
from typing import NamedTuple

from spem.train.identity import repeat_name
from spem.train.recipe import Recipe


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
        """Name of the table row that the run shares with those of other seeds or folds."""
        return row_name(self.gate, self.overrides)

    @property
    def repeat(self) -> str:
        """What tells the run from the others of its row: "seed 3" or "fold 2 of 5"."""
        return repeat_name(self.recipe.seed, self.recipe.fold, self.recipe.folds)

    def folder_in(self, comparison: Path) -> Path:
        """Return the folder of the run below the folder of its comparison."""
        return comparison / "cells" / self.key


def row_name(gate: str, overrides: str) -> str:
    """Return the name of a row in the tables: its gate, and its overrides if there are any."""
    return ", ".join(filter(None, (gate, overrides)))
