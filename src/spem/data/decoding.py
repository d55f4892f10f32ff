"""The pixels of a picture's bytes: JPEG by libjpeg-turbo where it is installed, else by Pillow."""

from io import BytesIO
from typing import TYPE_CHECKING

from spem._extras import needs_extra
from spem.data.images import MOST_PIXELS, decode, to_colours

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
    with needs_extra("train"):
        from PIL import Image
    pixels = _decode_jpeg(content, grey=True)
    if pixels is None:
        return decode(BytesIO(content), name)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def decode_pixels(content: bytes, name: str, channels: int) -> "np.ndarray":
    """Return the pixels of a picture, uint8 (H, W, C); see `decode_image`.

    Args:
        content: of a picture file.
        name: of the picture, for errors.
        channels: C, 1 (grey) or 3 (RGB).
    """
    import numpy as np

    if channels == 3 and (pixels := _decode_jpeg(content, grey=False)) is not None:
        return pixels
    pixels = np.asarray(to_colours(decode_image(content, name), channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def _decode_jpeg(content: bytes, grey: bool) -> "np.ndarray | None":
    """Return the pixels of a JPEG, (H, W, 3), or None for other pictures, which Pillow must judge.

    Args:
        content: of the file.
        grey: give a grey picture one channel.
    """
    if decode_jpeg is None or decode_jpeg_header is None:
        return None
    if not content.startswith(_JPEG) or _EXIF in content[:_HEAD]:
        return None
    try:
        height, width, colours, _ = decode_jpeg_header(content)
        if int(height) * int(width) > MOST_PIXELS or colours not in ("Gray", "YCbCr", "RGB"):
            return None
        return decode_jpeg(content, "GRAY" if grey and colours == "Gray" else "RGB")
    except ValueError:  # damaged, of a rare kind, or with something that Pillow overlooks
        return None
