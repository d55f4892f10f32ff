"""Images that stay in their files, and are decoded batch by batch by other processes."""

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spem.data.decoding import decode_image, decode_pixels
from spem.data.images import ImageForm, prepare_image
from spem.data.names import Names
from spem.data.resized_crop import ResizedCrop
from spem.data.shards import Shards

# Of the images of a split, at most one of so many is replaced because it cannot be read.
READABLE = 100
# Mean and standard deviation are measured on so many images.
_MEASURED = 1000


class Pictures:
    """The images of a split, which are decoded when they are needed; to read, as a tensor is.

    Args:
        files: of the images.
        form: what they are brought to.
        workers: number of processes that decode batches ahead of their use; 0: none.
        skip: let the next image that can be read take the place of one that cannot, for at most 1 %
            or one.

    Attributes:
        shape: (N, C, H, W), as of a tensor of the images.
        interpolation: by which they are resized; None: bilinear.
    """

    def __init__(
        self, files: Names | Shards, form: ImageForm, workers: int = 0, skip: bool = False
    ):
        self.files, self._form = files, form
        self.workers, self.skip = workers, skip
        self.interpolation = form.interpolation
        self.shape = torch.Size((len(files), form.channels, *form.sides))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int | list[int]) -> Tensor:
        """Return an image as it is evaluated, uint8 (C, H, W), or several, uint8 (n, C, H, W).

        Raises:
            ValueError: one cannot be read as an image.
        """
        if isinstance(row, list):
            return torch.stack([self[each] for each in row])
        picture = decode_image(self.files.read(row), str(self.files[row]))
        return prepare_image(picture, **self._form._asdict())

    def cut(self, row: int, crop: ResizedCrop, seed: int) -> Tensor:
        """Return a random part of an image, uint8 (C, H, W), see `ResizedCrop`."""
        content, name = self.files.read(row), str(self.files[row])
        pixels = decode_pixels(content, name, self._form.channels)
        return crop(pixels, self._form.sides[0], seed, row)

    def sample(self) -> Tensor:
        """Return some of the images, always the same, uint8 (n, C, H, W)."""
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:_MEASURED]
        return self[rows.tolist()]


class Replaced(NamedTuple):
    """An image that cannot be read, and whose place another one of the split has taken."""

    place: int  # in the batch
    row: int
    by: int
    reason: str


class Stream:
    """Reads batches of images, in worker processes ahead of their use.

    Args:
        images: of the split.
        crop: of training images; None: images as they are evaluated.
        pinned: put batches where a GPU copies them from at once.
    """

    def __init__(self, images: Pictures, crop: ResizedCrop | None = None, pinned: bool = False):
        self._reader = _Reader(images, crop)
        self._workers, self._pinned = images.workers, pinned
        self._most = max(1, len(images) // READABLE)
        self._replaced: dict[int, str] = {}

    def read(self, shares: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, list[Replaced]]]:
        """Yield the images of each share, uint8 (n, C, H, W), and which of them were replaced.

        Args:
            shares: row numbers of the split, (n,) each.
            seed: of the epoch, from which follows what is cut out of the images.

        Raises:
            ValueError: an image cannot be read and may not be replaced, or a worker died.
        """
        loader = DataLoader(
            self._reader,
            batch_sampler=[(seed, rows.tolist()) for rows in shares],  # pyright: ignore[reportArgumentType]
            num_workers=self._workers,
            collate_fn=_keep,  # pyright: ignore[reportArgumentType]
            pin_memory=self._pinned,
            worker_init_fn=_leave_interrupts,
            generator=torch.Generator(),  # else the global one would be advanced
        )
        try:
            for images, replaced in loader:
                self._note(replaced)
                yield images, replaced
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise ValueError(
                f"a process that decodes images died ({' '.join(str(error).split())[:200]}): it may"
                " have been out of memory; fewer workers, or workers: 0, may help"
            ) from error

    def _note(self, replaced: Sequence[Replaced]) -> None:
        for each in replaced:
            if each.by < 0:
                raise ValueError(each.reason)
            self._replaced[each.row] = each.reason
        if len(self._replaced) > self._most:
            some = "; ".join(list(self._replaced.values())[:3])
            raise ValueError(
                f"{len(self._replaced)} of {len(self._reader.images)} training images or more"
                f" cannot be read, and at most 1 %, or one, is skipped: {some}"
            )


class _Reader(Dataset):
    """Decodes the images of a batch, in whichever process it is."""

    def __init__(self, images: Pictures, crop: ResizedCrop | None):
        self.images, self._crop = images, crop

    def __getitems__(self, batch: tuple[int, list[int]]) -> tuple[Tensor, list[Replaced]]:
        seed, rows = batch
        _, channels, height, width = self.images.shape
        # Where a pixel has its colours side by side, it is copied and normalised faster.
        images = torch.empty(len(rows), height, width, channels, dtype=torch.uint8)
        images, replaced = images.permute(0, 3, 1, 2), []
        for place, row in enumerate(rows):
            found = self._read(row, seed)
            if isinstance(found, Exception):
                other, image = self._replace(row, seed) if self.images.skip else (-1, None)
                replaced.append(Replaced(place, row, other, str(found)))
                found = images.new_zeros(()) if image is None else image
            images[place] = found
        return images, replaced

    def _read(self, row: int, seed: int) -> Tensor | Exception:
        try:
            if self._crop is None:
                return self.images[row]
            return self.images.cut(row, self._crop, seed)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(f"{self.images.files[row]} cannot be read: {error.strerror or error}")

    def _replace(self, row: int, seed: int) -> tuple[int, Tensor | None]:
        """Return the next row of the split that can be read, and its image; -1 if none can."""
        for step in range(1, min(READABLE, len(self.images))):
            other = (row + step) % len(self.images)
            if isinstance(found := self._read(other, seed), Tensor):
                return other, found
        return -1, None


def _keep(batch: tuple[Tensor, list[Replaced]]) -> tuple[Tensor, list[Replaced]]:
    """Return a batch as it is: `_Reader` has made it."""
    return batch


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
