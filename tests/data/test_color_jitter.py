"""Colour jitter against Pillow's enhancements."""

import numpy as np
import torch
from PIL import Image, ImageEnhance

from spem.data.color_jitter import ColorJitter


def test_it_is_what_pillow_does():
    images = torch.randint(256, (6, 3, 9, 14), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    found = ColorJitter(0.4)(images / 255) * 255
    torch.manual_seed(1)
    factors = 0.6 + 0.8 * torch.rand(3, 6)
    for image, own, three in zip(images, found, factors.T.tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).byte().numpy())
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, factor in zip(kinds, three, strict=True):
            picture = kind(picture).enhance(factor)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert (own - expected).abs().max() < 3  # Pillow rounds three times


def test_each_image_has_its_own_factors_within_the_range():
    grey = torch.full((2000, 3, 2, 2), 0.5)
    levels = ColorJitter(0.2)(grey)[:, 0, 0, 0] / 0.5
    assert 0.8 <= levels.min() < 0.801
    assert 1.199 < levels.max() <= 1.2001
    assert abs(levels.mean() - 1) < 0.01
    assert torch.equal(ColorJitter(0.2)(grey[:0]), grey[:0])
