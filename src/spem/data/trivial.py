"""TrivialAugment: one operation of fourteen, with one of 31 strengths, drawn for each image.

Pixels are in [0, 1] here, float32 (N, C, H, W), and the grey levels that operations count are 256.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRENGTHS = 31
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R 601


class TrivialAugment(nn.Module):
    """Change each image by one operation, both operation and strength drawn evenly.

    The operations and ranges are the wide space of Müller and Hutter 2021, "TrivialAugment:
    Tuning-free Yet State-of-the-Art Data Augmentation" (arXiv 2103.10158), as in the authors' code:
    identity, autocontrast, equalize, rotation by up to 135°, solarize, colour, posterize to 8 … 2
    bits, contrast, brightness and sharpness times 0.01 … 2, shears by up to 0.99, translations by
    up to 32 pixels. Rotations, shears and translations have either direction; they take the nearest
    pixel, and black from outside. The draws are of torch's global CPU generator.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """Return new, changed images, all values in [0, 1].

        Args:
            pixels: in [0, 1], float32 (N, C, H, W).
        """
        count = len(pixels)
        chosen = torch.randint(len(OPERATIONS), (count,))
        levels = torch.randint(STRENGTHS, (count,)) * (2 * torch.randint(2, (count,)) - 1)
        levels = levels.to(pixels).view(-1, 1, 1, 1)
        changed = pixels.clone()
        for number, operation in enumerate(OPERATIONS.values()):
            rows = (chosen == number).nonzero()[:, 0].to(pixels.device)
            if len(rows):
                changed[rows] = operation(pixels[rows], levels[rows])
        return changed


def _amount(level: Tensor, most: float) -> Tensor:
    return level * most / (STRENGTHS - 1)


def _blend(pixels: Tensor, other: Tensor, level: Tensor) -> Tensor:
    """Return what lies on the line from other pixels to these, by a factor of 0.01 … 2."""
    return other.lerp(pixels, 0.01 + _amount(level.abs(), 1.99)).clamp(0, 1)


def to_grey(pixels: Tensor) -> Tensor:
    """Return the brightness of pixels, (N, 1, H, W): with three channels, of colours."""
    if pixels.shape[1] != len(_LUMA):
        return pixels.mean(1, keepdim=True)
    return (pixels * pixels.new_tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)


def _positions(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres of columns, (W,), and rows, (H, 1), from the upper left corner."""
    height, width = pixels.shape[2:]
    columns = torch.arange(width, device=pixels.device) + 0.5
    return columns, torch.arange(height, device=pixels.device)[:, None] + 0.5


def _take(pixels: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Return the pixels at positions, (N, 1, H, W) if broadcast, and black outside of the image."""
    height, width = pixels.shape[2:]
    columns, rows = torch.broadcast_tensors(columns.floor().long(), rows.floor().long())
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    places = places.flatten(2).expand(-1, pixels.shape[1], -1)
    return pixels.flatten(2).gather(2, places).view_as(pixels) * inside


def _keep(pixels: Tensor, level: Tensor) -> Tensor:
    return pixels


def _stretch(pixels: Tensor, level: Tensor) -> Tensor:
    """Return each channel with its values from 0 to 1."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (pixels - low) / span, pixels)


def _equalize(pixels: Tensor, level: Tensor) -> Tensor:
    """Return each channel with all values equally frequent, as far as whole levels allow it."""
    shape, levels = pixels.shape, (pixels * 255).round().flatten(0, 1).flatten(1)
    values = torch.arange(256, device=pixels.device, dtype=levels.dtype).repeat(len(levels), 1)
    ordered = levels.sort(1).values
    below = torch.searchsorted(ordered, values)  # the number of pixels below each value
    brightest = (ordered == ordered[:, -1:]).sum(1, keepdim=True)
    step = (levels.shape[1] - brightest) // 255
    table = ((below + step // 2) // step.clamp(1)).clamp(0, 255)
    table = torch.where(step > 0, table.to(levels), values)
    return table.gather(1, levels.long()).view(shape) / 255


def _rotate(pixels: Tensor, level: Tensor) -> Tensor:
    x, y = _positions(pixels)
    middle_x, middle_y = pixels.shape[3] / 2, pixels.shape[2] / 2
    angle = _amount(level, 135).trunc().deg2rad()
    cos, sin, x, y = angle.cos(), angle.sin(), x - middle_x, y - middle_y
    return _take(pixels, cos * x - sin * y + middle_x, sin * x + cos * y + middle_y)


def _solarize(pixels: Tensor, level: Tensor) -> Tensor:
    bright = (pixels * 255).round() >= 256 - _amount(level.abs(), 256).trunc()
    return torch.where(bright, 1 - pixels, pixels)


def _color(pixels: Tensor, level: Tensor) -> Tensor:
    return _blend(pixels, to_grey(pixels).expand_as(pixels), level)


def _posterize(pixels: Tensor, level: Tensor) -> Tensor:
    step = 2 ** _amount(level.abs(), 6).trunc()
    return ((pixels * 255).round() / step).floor() * step / 255


def _contrast(pixels: Tensor, level: Tensor) -> Tensor:
    return _blend(pixels, to_grey(pixels).mean((2, 3), keepdim=True).expand_as(pixels), level)


def _brightness(pixels: Tensor, level: Tensor) -> Tensor:
    return _blend(pixels, torch.zeros_like(pixels), level)


def _sharpness(pixels: Tensor, level: Tensor) -> Tensor:
    """Return pixels nearer to or farther from their smoothed values; those of the edges stay."""
    if min(pixels.shape[2:]) < 3:
        return pixels
    smooth = pixels.clone()
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth[:, :, 1:-1, 1:-1] = (9 * F.avg_pool2d(pixels, 3, 1) + 4 * inner) / 13
    return _blend(pixels, smooth, level)


def _shear_x(pixels: Tensor, level: Tensor) -> Tensor:
    x, y = _positions(pixels)
    return _take(pixels, x + _amount(level, 0.99) * y, y)


def _shear_y(pixels: Tensor, level: Tensor) -> Tensor:
    x, y = _positions(pixels)
    return _take(pixels, x, y + _amount(level, 0.99) * x)


def _translate_x(pixels: Tensor, level: Tensor) -> Tensor:
    x, y = _positions(pixels)
    return _take(pixels, x + _amount(level, 32).trunc(), y)


def _translate_y(pixels: Tensor, level: Tensor) -> Tensor:
    x, y = _positions(pixels)
    return _take(pixels, x, y + _amount(level, 32).trunc())


# By name, each from pixels (N, C, H, W) and levels (N, 1, 1, 1) from -30 to 30, whose sign is the
# direction where there is one.
OPERATIONS = {
    "identity": _keep,
    "autocontrast": _stretch,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
