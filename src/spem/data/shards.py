"""Images in tar files, as WebDataset stores them, read in the order of the files."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spem.data.names import Names

# Images wait in a buffer of so many for their turn.
BUFFER = 10_000


class Shards(Sequence[Path]):
    """Images in tar files.

    Args:
        names: of the images: the path of the tar file below a folder, and that within it.
        places: for each image the number of its tar file in `files`, and where its bytes begin and
            how many they are; int64, (N, 3).
        files: the tar files.
    """

    def __init__(self, names: Names, places: np.ndarray, files: Sequence[Path]):
        self.names, self.places, self.files = names, places, files

    @property
    def root(self) -> Path:
        """The folder of the tar files."""
        return self.names.root

    @property
    def content(self) -> np.ndarray:
        """What tells these images from others: names and places, as bytes."""
        return np.concatenate([self.names.content, self.places.view(np.uint8).ravel()])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Path:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.names[row]

    def __iter__(self) -> Iterator[Path]:
        return iter(self.names)

    def take(self, rows: Sequence[int]) -> "Shards":
        """Return the images of some rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Shards(self.names.take(rows), self.places[chosen], self.files)

    def read(self, row: int) -> bytes:
        """Return the content of an image file."""
        file, start, size = self.places[row].tolist()
        return os.pread(_open(self.files[file], os.getpid()), size, start)

    def order(self, seed: int, buffer: int = BUFFER) -> Tensor:
        """Return row numbers in the order of an epoch, (N,), which follows from the seed.

        The tar files are shuffled, and read one behind the other; what is read waits in a buffer,
        out of which the next image is drawn.
        """
        numbers = np.random.default_rng(seed)
        ranks = numbers.permutation(len(self.files))
        coming = np.lexsort((self.places[:, 1], ranks[self.places[:, 0]]))
        size = min(buffer, len(coming))
        held, order = coming[:size].copy(), np.empty_like(coming)
        drawn = numbers.integers(max(1, size), size=len(coming) - size)
        for place, (slot, row) in enumerate(zip(drawn, coming[size:], strict=True)):
            order[place], held[slot] = held[slot], row
        order[len(coming) - size :] = numbers.permutation(held)
        return torch.from_numpy(order)


@lru_cache(maxsize=256)
def _open(path: Path, process: int) -> int:
    """Return a descriptor of a tar file, of this process's own."""
    return os.open(path, os.O_RDONLY)
