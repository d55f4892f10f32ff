"""The summary of a finished run, `summary.json`, whose presence marks a folder as finished."""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from spem._files import write_text
from spem._schema import (
    Accuracy,
    Few,
    Flag,
    Large,
    Names,
    Natural,
    NonNegative,
    Numbers,
    Seed,
    Seeds,
    Text,
    read_json,
)

_Imported = TypedDict("_Imported", {"import": NotRequired[Names]})


# Guessing among a million classes has a cross-entropy of 14: a larger loss means a lost run.
ABSURD_LOSS = 50.0


class Images(TypedDict):
    """Numbers of images of the splits of a run."""

    train: Large
    validation: NotRequired[Large]
    test: Large


class Summary(_Imported):
    """What `summary.json` holds, and with it the record of a run; older ones lack some keys."""

    final_test_top1: Accuracy
    best_validation_epoch: NotRequired[Natural | None]  # from 0, as in metrics.csv
    stopped_early: NotRequired[Flag]  # where the recipe has a patience
    test_top1_at_best_validation: Accuracy | None
    best_test_top1: Accuracy
    best_test_top1_is: NotRequired[Text]
    parameters: Large
    macs: Large
    images_per_second: NonNegative
    seed: Seed
    images: NotRequired[Images]
    images_sum: NotRequired[Text]  # of a folder, see `sum_of_folder`
    identity: NotRequired[Text]
    threads: NotRequired[Few | None]
    precision: NotRequired[Text]
    device: Text
    kernels: Text
    versions: Names
    seconds: NonNegative
    files: NotRequired[Names]


class Spread(TypedDict):
    """A figure of several seeds: mean, sample standard deviation, number, and the values."""

    mean: NonNegative
    std: NonNegative
    n: Few
    values: Numbers


class CommonSummary(TypedDict):
    """What the `summary.json` of replicas holds of those of its runs."""

    final_test_top1: Spread | None
    test_top1_at_best_validation: Spread | None
    best_test_top1: Spread | None
    images_per_second: NonNegative
    seconds: NonNegative
    seed: Seeds


def read_summary(folder: Path, replicas: int = 1) -> dict[str, Any]:
    """Return the content of a folder's `summary.json`, checked.

    Args:
        folder: of a run.
        replicas: number of its runs; the summary of several has means and standard deviations.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or its content is not allowed.
    """
    return read_json(folder / "summary.json", Summary if replicas == 1 else CommonSummary)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, which marks a folder as that of a finished run."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
