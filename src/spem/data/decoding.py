"""The pixels of a picture's bytes: JPEG by libjpeg-turbo where it is installed, else by Pillow."""

from io import BytesIO
from typing import TYPE_CHECKING

from spem._extras import needs_extra
from spem.data.images import MOST_PIXELS, decode

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

try:  # of the extra `stream`; without it Pillow gives the same pixels, and takes longer
    from simplejpeg import decode_jpeg, decode_jpeg_header
except ImportError:
    decode_jpeg = decode_jpeg_header = None

_JPEG, _EXIF = b"\xff\xd8\xff", b"Exif\0\0"
# Where the EXIF data of a JPEG begin, if it has any: the standard wants them first.
_HEAD = 4096


def decode_image(content: bytes, name: str) -> "Image.Image":
    """Return a decoded picture, turned upright as its EXIF data say.

    Args:
        content: of a picture file.
        name: of the picture, for errors.

    Raises:
        ValueError: see `open_image`.
    """
    if content.startswith(_JPEG) and _EXIF not in content[:_HEAD]:
        pixels = _decode_jpeg(content)
        if pixels is not None:
            with needs_extra("train"):
                from PIL import Image
            return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return decode(BytesIO(content), name)


def _decode_jpeg(content: bytes) -> "np.ndarray | None":
    """Return the pixels of a JPEG, (H, W, 1 or 3), or None for one that Pillow must judge."""
    if decode_jpeg is None or decode_jpeg_header is None:
        return None
    try:
        height, width, colours, _ = decode_jpeg_header(content)
        if int(height) * int(width) > MOST_PIXELS or colours not in ("Gray", "YCbCr", "RGB"):
            return None
        return decode_jpeg(content, "GRAY" if colours == "Gray" else "RGB")
    except ValueError:  # damaged, of a rare kind, or with something that Pillow overlooks
        return None
