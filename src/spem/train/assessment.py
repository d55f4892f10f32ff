"""A trained network on a test split in detail: figures, classes, confusions, worst mistakes."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from spem._extras import needs_extra
from spem._files import write_table
from spem.data.batches import Batches
from spem.data.splits import Dataset
from spem.train.confusion import draw_confusion
from spem.train.metrics import classify, summarise
from spem.train.mistakes import write_mistakes

with needs_extra("train"):
    from torchmetrics.functional.classification import (
        multiclass_calibration_error,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

# Confidences are put in so many bins of equal width.
_BINS = 15


class Assessment(NamedTuple):
    """How a classifier does on a split.

    Attributes:
        figures: `images`, `loss`, `top1`, `top5` (None below six classes), `balanced_accuracy` (the
            mean recall of the classes) and `calibration_error` (expected calibration error: the
            mean distance between confidence and accuracy), fractions of 1 but for the first two.
        per_class: one row per class: `class`, `images`, `precision`, `recall` and `f1`.
        confusion: number of images by class (row) and predicted class (column), int64.
        probabilities: of the images in the order of the split, (N, classes).
        labels: of the images, (N,).
    """

    figures: dict[str, Any]
    per_class: list[dict[str, Any]]
    confusion: Tensor
    probabilities: Tensor
    labels: Tensor


def assess(model: nn.Module, batches: Batches, classes: tuple[str, ...]) -> Assessment:
    """Measure a classifier on a split in detail.

    Args:
        model: see `spem.train.metrics.evaluate`; it is left in eval mode.
        batches: of the split.
        classes: names by label.
    """
    logits, labels = classify(model, batches)
    probabilities, count = logits.softmax(1), len(classes)
    each: dict[str, Any] = {"num_classes": count, "average": "none"}
    columns = {
        "images": labels.bincount(minlength=count),
        "precision": multiclass_precision(probabilities, labels, **each),
        "recall": multiclass_recall(probabilities, labels, **each),
        "f1": multiclass_f1_score(probabilities, labels, **each),
    }
    error = multiclass_calibration_error(probabilities, labels, count, n_bins=_BINS, norm="l1")
    seen = columns["images"] > 0
    figures = summarise(logits, labels) | {
        "balanced_accuracy": round(columns["recall"][seen].mean().item(), 7),
        "calibration_error": round(error.item(), 7),
    }
    values = [[round(value, 7) for value in column.tolist()] for column in columns.values()]
    rows = [
        {"class": name} | dict(zip(columns, row, strict=True))
        for name, *row in zip(classes, *values, strict=True)
    ]
    confusion = multiclass_confusion_matrix(probabilities, labels, count)
    return Assessment(figures, rows, confusion.cpu(), probabilities.cpu(), labels.cpu())


def write_assessment(folder: Path, found: Assessment, dataset: Dataset, title: str) -> None:
    """Write `per_class.csv`, `confusion.png` and `mistakes.html`.

    Args:
        folder: created if it is not there.
        found: on the test split.
        dataset: its data.
        title: names the network and the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "per_class.csv", found.per_class)
    draw_confusion(folder / "confusion.png", found.confusion, dataset.classes, title)
    path = folder / "mistakes.html"
    write_mistakes(path, dataset, found.probabilities, found.labels, title)
