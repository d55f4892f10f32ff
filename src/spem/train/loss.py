"""The loss of a recipe, for labels and for images that are mixed of several classes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from spem._messages import shorten
from spem.train.recipe import Recipe


class Loss:
    """The loss of each image of a batch; a step takes their mean.

    * ce: cross-entropy as in `torch.nn.CrossEntropyLoss`, with its label smoothing and weights.
    * bce: each class is a question of its own, answered by the sigmoid of its logit (Wightman,
      Touvron and Jégou 2021, "ResNet strikes back", arXiv 2110.00476). The loss of an image is the
      mean over the classes, as in timm's `BinaryCrossEntropy`, not their sum; labels are smoothed
      as for ce. The whole image is weighted: by its class, or by its classes and their shares.

    Args:
        recipe: loss and label_smoothing.
        weights: of the classes, (classes,), or None; see `balance`.
    """

    def __init__(self, recipe: Recipe, weights: Tensor | None = None):
        self._binary, self._smoothing = recipe.loss == "bce", recipe.label_smoothing
        self._weights = weights

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, (n,).

        Args:
            logits: (n, classes).
            targets: labels, int64 (n,), or the shares of the classes, float32 (n, classes).
        """
        if not self._binary:
            options = {"weight": self._weights, "label_smoothing": self._smoothing}
            return F.cross_entropy(logits, targets, **options, reduction="none")
        classes = logits.shape[1]
        shares = to_shares(targets, classes)
        smooth = shares * (1 - self._smoothing) + self._smoothing / classes
        losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
        return losses if self._weights is None else losses * (shares * self._weights).sum(1)


def to_shares(targets: Tensor, classes: int) -> Tensor:
    """Return the shares of the classes, float32 (n, classes); they may be given, or labels (n,)."""
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).float()


def to_labels(targets: Tensor) -> Tensor:
    """Return labels, int64 (n,); of a mixed image the class with the largest share."""
    return targets.argmax(1) if targets.is_floating_point() else targets


def balance(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Return the weights n / (K·n_c) of K classes with n_c of n images each, float32 (K,).

    All classes then have the same weight in the sum over the images, and the mean weight of an
    image is 1 (King and Zeng 2001; scikit-learn's "balanced").

    Args:
        labels: of the training images, (n,).
        classes: their names.

    Raises:
        ValueError: a class has no images.
    """
    counts = labels.bincount(minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise ValueError(
            f"class_weights is balanced, but {shorten(missing[0])} has no training images: leave"
            " class_weights out, or the class"
        )
    return (len(labels) / (len(classes) * counts.double())).float()


def class_weights(recipe: Recipe, labels: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Return the weights of the classes that a recipe asks for, or None; see `balance`."""
    return None if recipe.class_weights is None else balance(labels, classes)
