"""The official files of CIFAR-10 and CIFAR-100, unpickled without running foreign code."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spem.data.batches import Split
from spem.data.pickles import read_pickle

SHAPE = (3, 32, 32)
# More than a row of pixels, its label and its file name take, and than all the rest of a file.
_ROW_BYTES, _REST_BYTES = 4096, 1 << 20


class Layout(NamedTuple):
    """The official folder of a data set: rows in each file, keys of the pickled dictionaries."""

    url: str
    md5: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    meta: str
    names: str
    labels: str
    classes: int

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return self.url.rpartition("/")[2]


# URLs, md5 sums and keys: https://www.cs.toronto.edu/~kriz/cifar.html
LAYOUTS = {
    "cifar10": Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train={f"data_batch_{number}": 10_000 for number in range(1, 6)},
        test={"test_batch": 10_000},
        meta="batches.meta",
        names="label_names",
        labels="labels",
        classes=10,
    ),
    "cifar100": Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train={"train": 50_000},
        test={"test": 10_000},
        meta="meta",
        names="fine_label_names",
        labels="fine_labels",
        classes=100,
    ),
}


class Contents(NamedTuple):
    """The splits, in the files' order, and the class names."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def find(layout: Layout, data_dir: Path) -> Path | None:
    """Return the official folder below `data_dir`, else the archive, else None."""
    places = (data_dir / layout.folder, data_dir / layout.archive)
    return next((place for place in places if place.exists()), None)


def read(layout: Layout, source: Path) -> Contents:
    """Return the images, labels and class names of an official folder or archive.

    An archive must have the official md5 sum, and is not unpacked. A folder is checked by its
    structure only (files, rows, 3,072 bytes per row, range of labels), because a folder with the
    same images in another order is legitimate.

    Args:
        layout: one of `LAYOUTS`.
        source: the folder or the archive, as `find` returns it.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: a file or the archive is damaged or altered, or holds anything but plain data.
    """
    files = {layout.meta: 0} | layout.train | layout.test
    data = _unpack(layout, source, [*files]) if source.is_file() else _files(source, files)
    meta = load(data[layout.meta], source / layout.meta)
    names = meta.get(layout.names)
    if not (isinstance(names, list) and len(names) == layout.classes):
        raise ValueError(f"{source / layout.meta}: '{layout.names}' is no list of {layout.classes}")
    splits = []
    for rows_by_file in (layout.train, layout.test):
        files = [_batch(layout, source / f, data[f], rows) for f, rows in rows_by_file.items()]
        splits.append(Split(*map(torch.cat, zip(*files, strict=True))))
    return Contents(*splits, classes=tuple(_text(name) for name in names))


def load(data: bytes, path: Path) -> dict[str, Any]:
    """Return the dictionary in one of the official files, which are pickles.

    Args:
        data: content of the file, written by Python 2 or 3 with numpy 1 or 2.
        path: the file, for errors.

    Raises:
        ValueError: the pickle is damaged or holds anything but plain data, see `read_pickle`.
    """
    try:
        return {_text(key): value for key, value in read_pickle(data).items()}
    # A damaged pickle can raise nearly every built-in exception.
    except Exception as error:
        reason = str(error)[:200] or "it is cut off"
        raise ValueError(f"{path} is no readable CIFAR file: {reason}") from error


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _files(folder: Path, rows: dict[str, int]) -> dict[str, bytes]:
    """Return the contents of files with so many rows each, none larger than it can be."""
    for file, count in rows.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} has no file {file}")
        size, largest = (folder / file).stat().st_size, count * _ROW_BYTES + _REST_BYTES
        if size > largest:
            raise ValueError(f"{folder / file} has {size:,} bytes, must have at most {largest:,}")
    return {file: (folder / file).read_bytes() for file in rows}


def _unpack(layout: Layout, archive: Path, files: list[str]) -> dict[str, bytes]:
    with archive.open("rb") as stream:
        md5 = hashlib.file_digest(stream, "md5").hexdigest()
    if md5 != layout.md5:
        raise ValueError(f"{archive} is damaged or altered: its md5 is {md5}, not {layout.md5}")
    wanted = {f"{layout.folder}/{file}": file for file in files}
    with tarfile.open(archive) as tar:
        # In the archive's own order: seeking back would decompress from its start again.
        return {
            wanted[member.name]: content.read()
            for member in tar
            if member.name in wanted and (content := tar.extractfile(member))
        }


def _batch(layout: Layout, path: Path, data: bytes, rows: int) -> Split:
    """Return the images and labels of one file, whose structure must be as the layout says."""
    content = load(data, path)
    images = content.get("data")
    size = torch.Size(SHAPE).numel()
    if not isinstance(images, Tensor) or images.shape != (rows, size):
        found = f"an array of {tuple(images.shape)}" if isinstance(images, Tensor) else "no array"
        raise ValueError(f"{path}: 'data' is {found}, not {rows} rows of {size} bytes")
    labels = content.get(layout.labels)
    if not (isinstance(labels, list) and len(labels) == rows):
        raise ValueError(f"{path}: '{layout.labels}' is no list of {rows}")
    wrong = [label for label in labels if label not in range(layout.classes)]
    if wrong:
        raise ValueError(f"{path}: label {repr(wrong[0])[:40]} is not in 0 to {layout.classes - 1}")
    return Split(images.reshape(rows, *SHAPE), torch.tensor(labels, dtype=torch.int64))
