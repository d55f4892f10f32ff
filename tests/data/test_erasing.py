"""Random erasing against the ranges of Zhong et al."""

import random

import pytest
import torch

from spem.data.erasing import RandomErasing


def rectangles(probability, count=2000, size=(40, 60)):
    """Erase black images; noise is black once in 16 million pixels."""
    torch.manual_seed(0)
    return RandomErasing(probability)(torch.zeros(count, 3, *size))


def areas(height, width):
    """Yield areas as the published algorithm draws them, one attempt after the other."""
    draw = random.Random(0)
    for _ in range(2000):
        while True:
            area, ratio = draw.uniform(0.02, 0.4) * height * width, draw.uniform(0.3, 1 / 0.3)
            rows, columns = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if rows < height and columns < width:
                break
        yield rows * columns / (height * width)


def test_erased_is_one_rectangle_of_noise_of_the_published_sizes():
    found = rectangles(1.0)
    inside = (found > 0).any(1)
    heights, widths = inside.any(2).sum(1), inside.any(1).sum(1)
    assert torch.equal(inside.sum((1, 2)), heights * widths)  # filled rectangles
    area, ratio = heights * widths / (40 * 60), heights / widths
    assert 0.015 < area.min() < 0.03
    assert 0.36 < area.max() < 0.42
    assert 0.25 < ratio.min() < 0.4
    assert 2.8 < ratio.max() < 4
    assert area.mean().item() == pytest.approx(sum(areas(40, 60)) / 2000, abs=0.015)
    noise = found[inside[:, None].expand_as(found)]
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_rectangles_lie_anywhere_and_whole_within_the_image():
    inside = (rectangles(1.0) > 0).any(1)
    covered = inside.float().mean(0)
    assert covered.min() > 0
    for edge in (inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]):
        assert edge.any(1).float().mean() > 0.01


def test_the_probability_is_that_of_a_rectangle():
    erased = (rectangles(0.3) > 0).flatten(1).any(1).float().mean().item()
    assert erased == pytest.approx(0.3, abs=0.05)
    assert not rectangles(0.0).any()


def test_images_too_small_for_any_rectangle_stay_as_they_are():
    assert not rectangles(1.0, size=(1, 1)).any()
    assert rectangles(1.0, count=0).shape == (0, 3, 40, 60)
