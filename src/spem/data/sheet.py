"""A contact sheet: many small images with their captions in one PNG file."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from spem._extras import needs_extra
from spem._files import atomically
from spem._messages import printable

with needs_extra("train"):
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 8
_WIDTH = 112  # of an image on the sheet, at least, in pixels
_MARGIN, _CAPTION = 8, 20


def draw_sheet(path: Path, images: Tensor, captions: Sequence[str], title: str) -> None:
    """Write a contact sheet, in rows of eight.

    Small images are magnified by a whole factor, so that each of their pixels can be seen.

    Args:
        path: the PNG file.
        images: uint8, (N, C, H, W), with one channel or three.
        captions: of the images.
        title: stands above them.
    """
    title = printable(title)
    height, width = images.shape[2:]
    factor = max(1, -(-_WIDTH // width))
    step_x, step_y = factor * width + _MARGIN, factor * height + _CAPTION + _MARGIN
    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 12)
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    top = _CAPTION + 2 * _MARGIN
    sheet_width = max(columns * step_x + _MARGIN, int(font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (sheet_width, rows * step_y + top), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, "black", font)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _MARGIN + number % columns * step_x, top + number // columns * step_y
        large = to_pillow(image).resize((factor * width, factor * height), Image.Resampling.NEAREST)
        sheet.paste(large, (x, y))
        pen.text((x, y + factor * height + 2), _fit(caption, font, factor * width), "black", font)
    with atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text in one line, cut off where it is wider than some pixels."""
    text = whole = " ".join(printable(text).split())
    while text and font.getlength(text) > width:
        whole = whole[:-1]
        text = f"{whole}…"
    return text


def to_pillow(image: Tensor) -> Image.Image:
    """Return an image, uint8 (C, H, W) with one channel or three, as a Pillow image."""
    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
