"""TrivialAugment's operations against Pillow, in which its authors wrote them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from spem.data import trivial
from spem.data.trivial import OPERATIONS, STRENGTHS, TrivialAugment


def affine(*matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix)


def enhance(kind):
    return lambda level: kind_at(kind, 0.01 + 1.99 * abs(level) / 30)


def kind_at(kind, factor):
    return lambda image: kind(image).enhance(factor)


def whole(level, most):
    return int(level * most / 30)


# As the authors' aug_lib.py calls Pillow in the wide space; a level from -30 to 30.
PILLOW = {
    "identity": lambda level: lambda image: image,
    "autocontrast": lambda level: ImageOps.autocontrast,
    "equalize": lambda level: ImageOps.equalize,
    "rotate": lambda level: lambda image: image.rotate(whole(level, 135)),
    "solarize": lambda level: lambda image: ImageOps.solarize(image, 256 - whole(abs(level), 256)),
    "color": enhance(ImageEnhance.Color),
    "posterize": lambda level: lambda image: ImageOps.posterize(image, 8 - whole(abs(level), 6)),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear_x": lambda level: affine(1, level * 0.99 / 30, 0, 0, 1, 0),
    "shear_y": lambda level: affine(1, 0, 0, level * 0.99 / 30, 1, 0),
    "translate_x": lambda level: affine(1, 0, whole(level, 32), 0, 1, 0),
    "translate_y": lambda level: affine(1, 0, 0, 0, 1, whole(level, 32)),
}
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
EXACT = (*MOVES, "identity", "equalize", "solarize", "posterize")
LEVELS = torch.arange(1 - STRENGTHS, STRENGTHS)


@pytest.fixture(params=[(3, 24, 24), (3, 17, 40), (1, 13, 17)], ids=str)
def image(request):
    """A smooth image with few levels, some of which are frequent."""
    channels, height, width = request.param
    noise = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))
    wave = torch.linspace(0, 6, width).sin() + torch.linspace(0, 4, height).cos()[:, None]
    return ((wave + 2) * 40 + 30 * noise).to(torch.uint8)


def with_pillow(image, operation):
    plain = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(plain if len(image) == 3 else plain[:, :, 0])
    changed = torch.from_numpy(np.array(operation(picture)))
    return changed.view(*plain.shape).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow_at_every_level(name, image):
    pixels = (image.float() / 255).expand(len(LEVELS), -1, -1, -1)
    found = OPERATIONS[name](pixels, LEVELS.float().view(-1, 1, 1, 1)) * 255
    for level, changed in zip(LEVELS.tolist(), found, strict=True):
        difference = (changed - with_pillow(image, PILLOW[name](level)).float()).abs()
        if name in MOVES:  # where a position lies on a border between two pixels, rounding decides
            borders = 0.05 if name == "rotate" else 0.01  # at 45°, a whole diagonal
            assert (difference > 0.01).float().mean() <= borders, level
        else:  # Pillow keeps whole levels only, also within an operation
            assert difference.max() <= (0.01 if name in EXACT else 2.01), level


def test_all_operations_and_strengths_are_drawn_evenly(monkeypatch):
    drawn = dict.fromkeys(OPERATIONS, 0)
    strengths = torch.zeros(2 * STRENGTHS - 1)

    def count(name):
        def operation(pixels, levels):
            drawn[name] += len(levels)
            strengths.add_(torch.histc(levels, len(strengths), 1 - STRENGTHS, STRENGTHS - 1))
            return pixels

        return operation

    monkeypatch.setattr(trivial, "OPERATIONS", {name: count(name) for name in OPERATIONS})
    torch.manual_seed(0)
    TrivialAugment()(torch.zeros(28_000, 1, 1, 1))
    assert len(drawn) == 14
    assert all(1750 < number < 2250 for number in drawn.values())  # 2,000 ± 5.8 deviations
    folded = strengths[STRENGTHS - 1 :].clone()
    folded[1:] += strengths[: STRENGTHS - 1].flip(0)
    assert ((folded > 730) & (folded < 1080)).all()  # 903 ± 5.9 deviations
    assert 13_000 < strengths[STRENGTHS:].sum() < 14_100


@pytest.mark.parametrize("shape", [(40, 3, 9, 7), (40, 1, 1, 1), (40, 4, 2, 5), (0, 3, 8, 8)])
def test_images_keep_shape_and_range_and_the_given_ones_stay(shape):
    torch.manual_seed(0)
    pixels = torch.rand(shape)
    before = pixels.clone()
    changed = TrivialAugment()(pixels)
    assert changed.shape == shape
    assert torch.equal(pixels, before)
    assert changed.isfinite().all()
    assert ((changed >= 0) & (changed <= 1)).all()
    assert not len(pixels) or not torch.equal(changed, pixels)
