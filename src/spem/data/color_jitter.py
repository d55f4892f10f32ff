"""Colour jitter: random brightness, contrast and saturation of each training image."""

import torch
from torch import Tensor, nn

from spem.data.trivial import to_grey


class ColorJitter(nn.Module):
    """Change brightness, contrast and saturation of each image, in this order.

    A factor f draws an image away from, or towards, black (brightness), its mean grey (contrast) or
    its own grey (saturation): other + f·(image − other), with clipping, as Pillow enhances images.
    After Howard 2013, "Some Improvements on Deep Convolutional Neural Network Based Image
    Classification" (arXiv 1312.5402), which draws the order, too. The factors are drawn evenly from
    1 − c to 1 + c, of torch's global CPU generator.

    Args:
        strength: c, in [0, 1]; often 0.4.
    """

    def __init__(self, strength: float):
        super().__init__()
        self._strength = strength

    def forward(self, pixels: Tensor) -> Tensor:
        """Return new, changed images, all values in [0, 1].

        Args:
            pixels: in [0, 1], float32 (N, C, H, W).
        """
        factors = 1 + self._strength * (2 * torch.rand(3, len(pixels), 1, 1, 1) - 1)
        for factor, kind in zip(factors.to(pixels), ("black", "mean", "grey"), strict=True):
            other = torch.zeros_like(pixels) if kind == "black" else to_grey(pixels)
            other = other.mean((2, 3), keepdim=True) if kind == "mean" else other
            pixels = other.lerp(pixels, factor).clamp(0, 1)
        return pixels
