"""Picture files for tests: of one colour, or of noise."""

import torch
from PIL import Image


def paint(path, colour, size=(8, 8)):
    """Write a picture of one colour, (red, green, blue) or one grey, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour if isinstance(colour, tuple) else (colour,) * 3).save(path)


def draw_noise(folder, count, size, noise):
    """Write so many pictures of noise, of (width, height) pixels, by a generator."""
    folder.mkdir(parents=True)
    width, height = size
    for number in range(count):
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=noise)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
