"""Loss and accuracy of a classifier, summed up on its device."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spem._extras import needs_extra
from spem.data.batches import Batches

with needs_extra("train"):
    from torchmetrics import MeanMetric, MetricCollection
    from torchmetrics.classification import MulticlassAccuracy


def create_metrics(classes: int, device: torch.device) -> MetricCollection:
    """Return the metrics "loss" (mean of `value`), "top1" and, above five classes, "top5".

    Args:
        classes: number of classes.
        device: where the sums are kept.
    """
    accuracy: dict[str, Any] = {"num_classes": classes, "average": "micro", "validate_args": False}
    metrics = {
        # The check for NaN would wait for the device at every step.
        "loss": MeanMetric(nan_strategy="disable"),
        "top1": MulticlassAccuracy(**accuracy),
    }
    if classes > 5:
        metrics["top5"] = MulticlassAccuracy(top_k=5, **accuracy)
    collection = MetricCollection(metrics, compute_groups=False).to(device)
    collection.persistent(True)
    return collection


def read(metrics: MetricCollection) -> dict[str, Any]:
    """Return the values of the metrics so far; "top5" is None below six classes."""
    # float32 has seven significant digits; the others are noise.
    values = {name: round(value.item(), 7) for name, value in metrics.compute().items()}
    return {"top5": None} | values


def evaluate(model: nn.Module, batches: Batches) -> dict[str, Any]:
    """Measure the loss and the accuracy of a classifier on a split.

    Args:
        model: from images (N, C, H, W) to logits (N, classes), on the device of the batches; it is
            left in eval mode.
        batches: of the split; they are not augmented.

    Returns:
        `loss`, the mean cross-entropy; `top1` and `top5`, fractions of 1, the latter None below
        six classes; `images`, the number of images that this process has measured.
    """
    answers = answer(model, batches)
    first, _ = start = next(answers)
    metrics, images = create_metrics(first.shape[1], first.device), 0
    for logits, labels in chain([start], answers):
        update(metrics, logits, labels)
        images += len(labels)
    return {**read(metrics), "images": images}


def answer(model: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits, float32 (n, classes), and the labels, (n,), of a split; see `evaluate`.

    One batch after the other, so that memory does not grow with the number of images.
    """
    model.eval()
    for images, labels in batches.in_order():
        with torch.inference_mode():
            yield model(images).float(), labels


def update(metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Add a batch to the metrics of a split."""
    with torch.inference_mode():
        losses = F.cross_entropy(logits, labels, reduction="none")
        metrics.update(value=losses, preds=logits, target=labels)
