"""Images mixed of two, by mixup or CutMix, and the shares of their classes."""

import torch
from torch import Tensor
from torch.distributions import Beta

from spem.train.loss import to_shares
from spem.train.recipe import Recipe


class Mixing:
    """Mix each image of a batch with the one before it, by the method that a recipe names.

    * mixup: λ·x + (1 − λ)·x' (Zhang et al. 2018, arXiv 1710.09412).
    * CutMix: x with a rectangle of x' in it, whose area is 1 − λ of the image before its part
      outside is cut away; λ is then the share of x that is left (Yun et al. 2019, arXiv
      1905.04899).

    In both, λ is drawn from Beta(α, α) for each image, and the target is λ of the image's own
    class and 1 − λ of the other's. With both, each image gets either with probability ½. Batches
    come in random order, so the image before is a random one. The draws are of torch's global CPU
    generator.

    Args:
        recipe: mixup and cutmix, the α of each.
        classes: number of classes.
    """

    def __init__(self, recipe: Recipe, classes: int):
        self._mixup, self._cutmix, self._classes = recipe.mixup, recipe.cutmix, classes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and shares of the classes; without a method, the arguments.

        Args:
            images: (n, C, H, W).
            labels: (n,).

        Returns:
            Images (n, C, H, W) and shares, float32 (n, classes).
        """
        if not self._mixup and not self._cutmix:
            return images, labels
        weights, share = self._draw(len(labels), *images.shape[2:])
        weights, share = weights.to(images.device), share.to(images.device)[:, None]
        targets = to_shares(labels, self._classes)
        mixed = images.lerp(images.roll(1, 0), 1 - weights)
        return mixed, share * targets + (1 - share) * targets.roll(1, 0)

    def _draw(self, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the weights of an image's own pixels, (n, 1, H, W), and their means, (n,)."""
        weights = torch.ones(count, 1, height, width)
        if self._mixup:
            weights *= Beta(self._mixup, self._mixup).sample((count, 1, 1, 1))
        if self._cutmix:
            cut = torch.rand(count, 1, 1, 1) < (0.5 if self._mixup else 1.0)
            outside = _draw_boxes(self._cutmix, count, height, width)
            weights = torch.where(cut, outside, weights)
        return weights, weights.mean((1, 2, 3))


def _draw_boxes(alpha: float, count: int, height: int, width: int) -> Tensor:
    """Return 0 in a rectangle of each image and 1 outside of it, (n, 1, H, W)."""
    side = (1 - Beta(alpha, alpha).sample((count,))).sqrt()
    spans = []
    for size in (height, width):
        half, middle = (side * size).floor() // 2, torch.randint(size, (count,))
        positions = torch.arange(size)
        within = (positions >= (middle - half)[:, None]) & (positions < (middle + half)[:, None])
        spans.append(within)
    rows, columns = spans
    return 1 - (rows[:, :, None] & columns[:, None])[:, None].float()
