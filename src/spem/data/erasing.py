"""Random erasing: a rectangle of noise in some of the training images."""

import torch
from torch import Tensor, nn

_AREA = (0.02, 0.4)  # of the image
_RATIO = (0.3, 1 / 0.3)  # of the height to the width
_ATTEMPTS = 10


class RandomErasing(nn.Module):
    """Fill a random rectangle of each image with random pixels, or leave the image as it is.

    As in Zhong et al. 2020, "Random Erasing Data Augmentation" (arXiv 1708.04896), with their
    ranges: an area of 2 to 40 % of the image, a ratio of height to width of 0.3 to 3.3, at any
    place where it fits. Rectangles and images are drawn from torch's global CPU generator, the
    pixels from that of the images' device.

    Args:
        probability: of a rectangle, in [0, 1]; published: 0.5.
    """

    def __init__(self, probability: float):
        super().__init__()
        self._probability = probability

    def forward(self, pixels: Tensor) -> Tensor:
        """Return new, changed images.

        Args:
            pixels: in [0, 1], float32 (N, C, H, W).
        """
        inside = self._draw(*pixels.shape[:1], *pixels.shape[2:]).to(pixels.device)
        return torch.where(inside, torch.rand_like(pixels), pixels)

    def _draw(self, count: int, height: int, width: int) -> Tensor:
        """Return which pixels are erased, (N, 1, H, W)."""
        erased = torch.rand(count) < self._probability
        area = torch.empty(_ATTEMPTS, count).uniform_(*_AREA) * height * width
        ratio = torch.empty(_ATTEMPTS, count).uniform_(*_RATIO)
        heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(0, keepdim=True)  # the first attempt that fits
        erased &= fits.any(0)
        rows = _draw_span(heights.gather(0, first)[0], height)
        columns = _draw_span(widths.gather(0, first)[0], width)
        return (erased[:, None, None] & rows[:, :, None] & columns[:, None])[:, None]


def _draw_span(lengths: Tensor, size: int) -> Tensor:
    """Return which of so many positions lie in spans of these lengths, anywhere: (N, size)."""
    starts = (torch.rand(len(lengths)) * (size - lengths + 1)).floor()
    positions = torch.arange(size)
    return (positions >= starts[:, None]) & (positions < (starts + lengths)[:, None])
