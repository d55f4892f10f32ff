"""Picture files: which there are in a folder, and what a network sees of one."""

import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spem._extras import needs_extra
from spem._files import check_path
from spem._messages import shorten
from spem._schema import Interpolation, Ratio, Sides, check_value

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# What these suffixes promise, by content: Pillow knows forty more, one of which starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# A picture that is longer than so many times its width is cut before it is resized.
_MOST_OBLONG = 10
MOST_PIXELS = 100_000_000  # of a picture, by its header: 300 MB when it is decoded


class ImageForm(NamedTuple):
    """What pictures are brought to; see `prepare_image`."""

    size: int | Sequence[int]
    channels: int
    interpolation: str | None = None
    crop_ratio: float | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)


def find_images(folder: Path) -> list[Path]:
    """Return the picture files in a folder and all folders below it, sorted by path.

    Hidden files are left out: archives made on a Mac have a `._a.jpg`, no picture, for `a.jpg`.

    Raises:
        ValueError: there is none.
    """
    below = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    files = [path for path in below if not (path.name.startswith(".") or path.is_dir())]
    if not files:
        raise no_image(folder)
    return files


def no_image(folder: Path) -> ValueError:
    """Return the error for a folder without a picture file."""
    return ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")


def prepare_image(
    image: "str | Path | Image.Image",
    *,
    size: int | Sequence[int],
    channels: int,
    interpolation: str | None = None,
    crop_ratio: float | None = None,
) -> Tensor:
    """Return an image scaled until it covers the size, and cropped at its centre.

    Sixteen bits are scaled to eight. Transparency is ignored: transparent pixels keep their colour.
    Of an animation the first picture is taken.

    Args:
        image: the path of an image file, or a Pillow image.
        size: the side, or (H, W), in pixels.
        channels: C, 1 (grey) or 3 (RGB).
        interpolation: nearest, bilinear, bicubic or lanczos; None for bilinear.
        crop_ratio: the shorter side is brought to that of the size divided by this, rounded down,
            as timm and torchvision do; None: the image is scaled until it just covers the size,
            with fractions of pixels.

    Returns:
        uint8, (C, H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image, its pixels are floating-point numbers, or
            `channels` is neither 1 nor 3, or another argument is not allowed.
    """
    with needs_extra("train"):
        import numpy as np
        from PIL import Image, ImageOps
    if not isinstance(channels, int) or channels not in (1, 3):
        raise ValueError(f"channels is {shorten(channels)}, must be 1 (grey) or 3 (RGB)")
    sides = (size, size) if isinstance(size, int) else size
    check_value("size", list(sides) if isinstance(sides, Sequence) else sides, Sides)
    check_value("interpolation", interpolation, Interpolation | None)
    check_value("crop_ratio", crop_ratio, Ratio | None)
    height, width = sides
    loaded = image if isinstance(image, Image.Image) else open_image(check_path("image", image))
    _refuse_floats(loaded, image)
    converted = to_colours(loaded, channels)
    method = Image.Resampling[(interpolation or "bilinear").upper()]
    if crop_ratio is None:
        fitted = ImageOps.fit(converted, (width, height), method)
    else:
        fitted = _cut_centre(converted, (width, height), method, crop_ratio)
    return torch.from_numpy(np.array(fitted)).view(height, width, channels).permute(2, 0, 1)


def _cut_centre(
    image: "Image.Image", sides: tuple[int, int], method: "Image.Resampling", ratio: float
) -> "Image.Image":
    """Return a picture resized by its shorter side and cut at its centre, as by torchvision."""
    # In floating-point numbers, 224 / (224 / 232) may be a little below 232.
    wanted = [math.floor(side / ratio + 1e-6) for side in sides]
    # Of a line of 30,000 pixels, resizing would make a picture of several GB.
    most = _MOST_OBLONG * min(image.size)
    image = _crop(image, [min(length, most) for length in image.size])
    side, own = max(zip(wanted, image.size, strict=True), key=lambda pair: pair[0] / pair[1])
    width, height = (int(side * length / own) for length in image.size)
    return _crop(image.resize((width, height), method), sides)


def _crop(image: "Image.Image", sides: Sequence[int]) -> "Image.Image":
    """Return the centre of a picture."""
    left, top = (round((full - side) / 2) for full, side in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))


def open_image(path: Path) -> "Image.Image":
    """Return a decoded image, turned upright as its EXIF data say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image of `FORMATS`, has more than `MOST_PIXELS`, or its
            pixels are floating-point numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    return decode(path, str(path))


def decode(source: Path | BytesIO, name: str) -> "Image.Image":
    """Return a decoded image, as `open_image`, of a file or of what one contains.

    Args:
        source: the file, or its content.
        name: of the image, for errors.
    """
    with needs_extra("train"):
        from PIL import Image, ImageOps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                _refuse_size(image)
                upright = ImageOps.exif_transpose(image)
    # Pillow's decoders raise many kinds of exceptions, SyntaxError among them.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error
    _refuse_floats(upright, name)
    return upright


def _refuse_size(image: "Image.Image") -> None:
    """Raise ValueError for a picture that is too large to decode, by its header."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width:,}×{height:,} pixels, must have at most {MOST_PIXELS:,}")


def _refuse_floats(image: "Image.Image", name: object) -> None:
    if image.mode == "F":
        raise ValueError(f"{name} has floating-point pixels, whose range is unknown")


def to_colours(image: "Image.Image", channels: int) -> "Image.Image":
    """Return a Pillow image in grey (one channel) or RGB (three), eight bits each."""
    return _eight_bits(image).convert("L" if channels == 1 else "RGB")


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Return an image of 16-bit grey, which Pillow would clip to white, in 8 bits."""
    import numpy as np
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    # Pillow's mode I has 32 bits; its values come from 16 bits of a file, or from 8.
    if image.mode.startswith("I;16") or (image.mode == "I" and levels.max() > 255):
        return Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
    return image
