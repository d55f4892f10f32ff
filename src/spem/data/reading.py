"""The images of listed files as splits: read into memory, or left in their files."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spem.data.batches import Split
from spem.data.cache import Decoder
from spem.data.images import ImageForm
from spem.data.names import Names
from spem.data.shards import Shards
from spem.data.stream import READABLE, Pictures

OnBadImage = Literal["raise", "skip", "list"]
Loader = Literal["memory", "stream"]


class Listing(NamedTuple):
    """Picture files and their labels, (N,)."""

    files: Names | Shards
    labels: Tensor

    def take(self, rows: Sequence[int]) -> "Listing":
        """Return some of the files, with their labels."""
        return Listing(self.files.take(rows), self.labels[rows])


class Streamer:
    """Makes splits of the files, and opens none of them; see `Reader`."""

    def __init__(self, form: ImageForm, workers: int, on_bad_image: OnBadImage):
        self._form, self._workers, self._skips = form, workers, on_bad_image == "skip"
        self.sizes: list[tuple[int, int]] = []
        self.unreadable: list[str] = []
        self.files: dict[str, Sequence[Path]] = {}

    def read(self, name: str, listing: Listing) -> Split:
        """Return the images of the split `name`: train, validation or test."""
        skip = self._skips and name == "train"
        self.files[name] = listing.files
        return Split(Pictures(listing.files, self._form, self._workers, skip), listing.labels)


class Reader:
    """Reads the images of splits, and keeps their files, their sizes and what is unreadable.

    Args:
        decoder: of the files.
        form: see `read_folder`.
        on_bad_image: see `read_folder`.
        skips: names of the splits of which images may be skipped.
    """

    def __init__(
        self, decoder: Decoder, form: ImageForm, on_bad_image: OnBadImage, skips: Sequence[str]
    ):
        self._decoder, self._form, self._on_bad_image = decoder, form, on_bad_image
        self._skips = skips
        self.sizes: list[tuple[int, int]] = []
        self.unreadable: list[str] = []
        self.files: dict[str, Sequence[Path]] = {}

    def read(self, name: str, listing: Listing) -> Split:
        """Return the images of the split `name`: train, validation or test."""
        count, sides, rows, errors = len(listing.files), self._form.sides, [], []
        images = torch.empty(count, self._form.channels, *sides, dtype=torch.uint8)
        with closing(self._decoder.decode(listing.files, images)) as decoded:
            for row, found in enumerate(decoded):
                if isinstance(found, Exception):
                    errors.append(str(found))
                    self._refuse(errors, count, measured=name not in self._skips)
                else:
                    rows.append(row)
                    self.sizes.append(found)
        self.unreadable += errors
        if not rows:
            raise ValueError(f"none of {len(errors)} images can be read: {errors[0]}")
        self.files[name], labels = listing.take(rows)
        return Split(images[rows] if errors else images, labels)

    def _refuse(self, errors: list[str], count: int, measured: bool) -> None:
        """Raise ValueError if more images of a split cannot be read than may be skipped."""
        if self._on_bad_image == "list":
            return
        if self._on_bad_image == "raise":
            skip = "" if measured else ", or skip a few training images (on_bad_image: skip)"
            raise ValueError(
                f"{errors[0]}; `spem data FOLDER` lists all such images: remove them{skip}"
            )
        if measured:
            raise ValueError(
                f"{errors[0]}; only training images are skipped, and this one belongs to the"
                " images that are measured: repair or remove it"
            )
        if len(errors) > max(1, count // READABLE):
            raise ValueError(
                f"{len(errors)} of {count} training images or more cannot be read, and at most"
                f" 1 %, or one, is skipped: {'; '.join(errors[:3])}; remove them"
                " (`spem data FOLDER` lists all)"
            )
