"""Picture files decoded in parallel, and kept in one file, so that the next run need not decode."""

import hashlib
import json
import logging
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from spem._extras import needs_extra
from spem._files import atomically
from spem.data import images as preparation
from spem.data.images import ImageForm, open_image, prepare_image

# Beside the folders of runs.
CACHE = "image-cache"
# Fewer images are decoded in a few seconds.
_WORTH = 500
_log = logging.getLogger("spem")


class Decoder:
    """Decodes picture files, those alone whose content it does not have from an earlier time.

    Images are kept by the SHA-256 sum of their file, with a checksum of their own, so that a file
    that has changed and an image that is damaged are decoded again.

    Args:
        root: the folder of the files, which gives the kept file its name.
        form: what images are brought to.
        count: number of files in all; few are not kept.
        folder: where images are kept; None: nowhere.
    """

    def __init__(self, root: Path, form: ImageForm, count: int, folder: Path | None):
        self._form, self._path = form, None
        self._old, self._facts = dict[str, Tensor](), dict[str, list[int]]()
        self._kept: dict[str, tuple[Tensor, list[int]]] = {}
        self._new = 0
        if folder is not None and count >= _WORTH:
            what = hashlib.sha256(f"{root.resolve()} {form} {_version()}".encode()).hexdigest()
            self._path = folder / f"{root.resolve().name}-{what[:12]}.safetensors"
            self._open(self._path)

    def decode(
        self, files: Sequence[Path], images: Tensor
    ) -> Generator[tuple[int, int] | Exception]:
        """Yield the (width, height) of each file, in order, or the error where it cannot be read.

        Args:
            files: N picture files.
            images: uint8, (N, C, H, W); the image of each file is written into its row.
        """
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            yield from pool.map(self._decode, files, images)
        finally:  # an error of the caller's does not wait for the rest
            pool.shutdown(cancel_futures=True)

    def keep(self) -> None:
        """Keep the images that have been decoded, if any is new; where that fails, say so."""
        if self._path is None or not self._new:
            return
        with needs_extra("train"):
            from safetensors.numpy import save_file
        facts = json.dumps({key: fact for key, (_, fact) in self._kept.items()})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomically(self._path) as temporary:
                images = {key: image.numpy() for key, (image, _) in self._kept.items()}
                save_file(images, temporary, {"facts": facts})
        except OSError as error:
            _log.warning("the decoded images are not kept for the next run: %s", error)

    def _open(self, path: Path) -> None:
        """Map the images of a kept file into memory; one that cannot be read counts as absent."""
        with needs_extra("train"):
            from safetensors import safe_open
            from safetensors.torch import load_file
        try:
            self._old = load_file(path)
            with safe_open(path, "pt") as file:
                self._facts = json.loads(file.metadata()["facts"])
        except FileNotFoundError:
            return
        except Exception as error:  # of any kind: the file may hold anything
            _log.warning("%s cannot be read, so the images are decoded again: %s", path, error)
            self._old = {}

    def _decode(self, file: Path, row: Tensor) -> tuple[int, int] | Exception:
        try:
            if self._path is None:
                return self._read(file, row)
            with file.open("rb") as opened:
                key = hashlib.file_digest(opened, "sha256").hexdigest()
            if (size := self._find(key, row)) is None:
                size, self._new = self._read(file, row), self._new + 1
            self._kept[key] = row, [*size, _sum(row)]
            return size
        except (ValueError, FileNotFoundError) as error:
            return error
        except OSError as error:  # of the disk, or of a link to itself
            return ValueError(f"{file} cannot be read: {error.strerror or error}")

    def _read(self, file: Path, row: Tensor) -> tuple[int, int]:
        picture = open_image(file)
        row.copy_(prepare_image(picture, **self._form._asdict()))
        return picture.size

    def _find(self, key: str, row: Tensor) -> tuple[int, int] | None:
        """Copy the kept image of a file's content, unless it is damaged; return the file's size."""
        image, fact = self._old.get(key), self._facts.get(key)
        if image is None or fact is None or image.shape != row.shape or fact[2] != _sum(image):
            return None
        row.copy_(image)
        return fact[0], fact[1]


def _sum(image: Tensor) -> int:
    return crc32(image.numpy().data)


def _version() -> str:
    """Return what decodes: another version of Pillow or of our own code may give other pixels."""
    with needs_extra("train"):
        from PIL import __version__
    own = Path(preparation.__file__).read_bytes()
    return f"{__version__} {hashlib.sha256(own).hexdigest()}"
