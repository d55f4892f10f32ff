"""Early stopping: a run ends when its validation accuracy has not risen for some epochs."""

import math
from collections.abc import Sequence
from typing import Any

from spem.data.splits import Dataset
from spem.train.recipe import Recipe


def has_stopped(recipe: Recipe, history: Sequence[dict[str, Any]]) -> bool:
    """Return whether the last `patience` epochs had no better validation accuracy than one before.

    Epochs of the warm-up do not count, whose learning rate is still too low to tell.

    Args:
        recipe: patience; none: a run never stops early.
        history: one row a finished epoch, as in `metrics.csv`.
    """
    if recipe.patience is None or not history:
        return False
    accuracies = [row["validation_top1"] for row in history]
    best = accuracies.index(max(accuracies))  # the first of equal ones: the others are no better
    last_warm = math.ceil(recipe.warmup_epochs) - 1
    return len(history) - 1 - max(best, last_warm) >= recipe.patience


def check_patience(recipe: Recipe, dataset: Dataset) -> None:
    """Raise ValueError where a recipe waits for a validation accuracy that there is not."""
    if recipe.patience is not None and dataset.validation is None:
        raise ValueError(
            f"patience is {recipe.patience}, but {dataset.name} has no validation images: set"
            " validation to the fraction of the training images to hold out, such as 0.1"
        )
