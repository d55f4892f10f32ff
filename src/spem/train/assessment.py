"""A trained network on a test split in detail: figures, classes, confusions, worst mistakes."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem._extras import needs_extra
from spem._files import write_table
from spem.data.batches import Batches
from spem.data.splits import Dataset
from spem.train.confusion import draw_confusion
from spem.train.metrics import answer, create_metrics, read, update
from spem.train.mistakes import write_mistakes

with needs_extra("train"):
    from torchmetrics import MetricCollection
    from torchmetrics.classification import (
        MulticlassCalibrationError,
        MulticlassF1Score,
        MulticlassPrecision,
        MulticlassRecall,
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
        labels: of the images in the order of the split, (N,).
        predicted: class with the largest probability, (N,).
        confidence: its probability, (N,).
    """

    figures: dict[str, Any]
    per_class: list[dict[str, Any]]
    labels: Tensor
    predicted: Tensor
    confidence: Tensor


def assess(model: nn.Module, batches: Batches, classes: tuple[str, ...]) -> Assessment:
    """Measure a classifier on a split in detail.

    Of each image three numbers are kept, whatever the number of classes.

    Args:
        model: see `spem.train.metrics.evaluate`; it is left in eval mode.
        batches: of the split.
        classes: names by label.
    """
    metrics = create_metrics(len(classes), batches.device)
    details, found = _create_details(len(classes)).to(batches.device), []
    for logits, labels in answer(model, batches):
        update(metrics, logits, labels)
        probabilities = logits.softmax(1)
        details.update(probabilities, labels)
        confidence, predicted = probabilities.max(1)
        found.append((labels.cpu(), predicted.cpu(), confidence.cpu()))
    labels, predicted, confidence = map(torch.cat, zip(*found, strict=True))
    columns = details.compute()
    error = columns.pop("calibration_error")
    columns = {"images": labels.bincount(minlength=len(classes)), **columns}
    seen = columns["images"] > 0
    figures = {**read(metrics), "images": len(labels)} | {
        "balanced_accuracy": round(columns["recall"].cpu()[seen].mean().item(), 7),
        "calibration_error": round(error.item(), 7),
    }
    values = [[round(value, 7) for value in column.tolist()] for column in columns.values()]
    rows = [
        {"class": name} | dict(zip(columns, row, strict=True))
        for name, *row in zip(classes, *values, strict=True)
    ]
    return Assessment(figures, rows, labels, predicted, confidence)


def _create_details(classes: int) -> MetricCollection:
    each: dict[str, Any] = {"num_classes": classes, "average": "none"}
    return MetricCollection(
        {
            "precision": MulticlassPrecision(**each),
            "recall": MulticlassRecall(**each),
            "f1": MulticlassF1Score(**each),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=_BINS, norm="l1"),
        }
    )


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
    answers = found.labels, found.predicted
    draw_confusion(folder / "confusion.png", *answers, dataset.classes, title)
    write_mistakes(folder / "mistakes.html", dataset, *answers, found.confidence, title)
