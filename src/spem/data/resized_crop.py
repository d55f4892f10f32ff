"""Random resized crops: a part of a picture of random size and shape, brought to one size."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RATIO = (3 / 4, 4 / 3)  # of the width to the height
_ATTEMPTS = 10


class ResizedCrop:
    """Cuts a random part out of a picture, resizes it, and mirrors it in half of the cases.

    As in Szegedy et al. 2015, "Going Deeper with Convolutions", section 6: the area is drawn evenly
    from a range of shares of the picture, the ratio of width to height log-evenly from 3/4 to 4/3.
    Of ten draws the first that fits is taken; where none does, the largest centre of such a ratio.

    What a picture draws follows from the seed and its row alone: neither from the other pictures of
    its batch nor from the process that decodes it.

    Args:
        area: smallest and largest share of the picture.
        flip: mirror half of the images.
        interpolation: bilinear or bicubic, with antialiasing.
    """

    def __init__(self, area: tuple[float, float], flip: bool, interpolation: str | None):
        self._area, self._flip = area, flip
        self._method = interpolation or "bilinear"

    def __call__(self, image: np.ndarray, size: int, seed: int, row: int) -> Tensor:
        """Return an image, uint8 (C, H, W).

        Args:
            image: uint8, (H, W, C).
            size: side in pixels.
            seed: of the epoch.
            row: of the picture in its split.
        """
        numbers = np.random.Generator(np.random.Philox(key=seed, counter=[0, row, 0, 0]))
        top, left, height, width = self.draw(numbers, *image.shape[:2])
        part = image[top : top + height, left : left + width].copy()
        # In this order the strides are those of channels_last, for which PyTorch is fastest.
        pixels = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
        (cut,) = F.interpolate(pixels, (size, size), mode=self._method, antialias=True)
        return cut.flip(2) if self._flip and numbers.random() < 0.5 else cut

    def draw(
        self, numbers: np.random.Generator, height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a part of a picture."""
        low, high = map(math.log, _RATIO)
        for _ in range(_ATTEMPTS):
            area = height * width * numbers.uniform(*self._area)
            ratio = math.exp(numbers.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = numbers.integers(height - h + 1), numbers.integers(width - w + 1)
                return int(top), int(left), h, w
        w = min(width, round(height * _RATIO[1]))
        h = min(height, round(width / _RATIO[0]))
        return (height - h) // 2, (width - w) // 2, h, w
