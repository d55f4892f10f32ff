"""Which images the tar files of a folder hold, and what their labels are."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spem._messages import shorten
from spem.data.images import IMAGE_SUFFIXES
from spem.data.names import Names, keep_arrays, read_arrays
from spem.data.reading import Listing
from spem.data.shards import Shards
from spem.data.sources import Reading, Source

_SPLITS = ("train", "validation", "valid", "val", "test")


def has_shards(root: Path) -> bool:
    """Return whether a folder holds tar files, itself or in its folder `train`."""
    return any(root.glob("*.tar")) or any(root.glob("train/*.tar"))


def list_shards(root: Path, how: Reading) -> Source:
    """Return the images of a folder of tar files.

    The splits are the folders train, val and test, or the tar files whose names begin so; without
    these they are drawn. In a tar file, `KEY.jpg` (or another picture) and `KEY.cls`, a number or a
    name, belong together; so do `KEY.jpg` and a `KEY.json` with the key `label`. The classes are
    the numbers, or the lines of a file `classes.txt`, or the names, sorted.

    Raises:
        ValueError: a tar file is damaged, or an image has no label.
    """
    files = sorted([*root.glob("*.tar"), *root.glob("*/*.tar")])
    splits = [_split_of(root, file) for file in files]
    kept = None if how.cache is None else how.cache / f"{root.resolve().name}-shards.safetensors"
    listed, labels = _list_all(root, files, kept)
    classes, numbers = _number_classes(root, labels)
    of_split = np.array([*splits, ""])[listed.places[:, 0]] if len(listed) else np.array([])

    def take(*names: str) -> Listing | None:
        rows = np.flatnonzero(np.isin(of_split, names)).tolist()
        return Listing(listed.take(rows), numbers[rows]) if len(rows) else None

    train, own, test = take("train", ""), take(*_SPLITS[1:4]), take("test")
    if train is None:
        raise ValueError(f"{root} has no tar file of training images, such as train-0000.tar")
    if test is None and own is not None:  # ImageNet's layout
        own, test = None, own
    return Source(
        str(root),
        classes,
        train,
        None if how.validation is None else own,
        None if how.fold is not None else test,
        f"{len(files)} tar files" if test is None else "train",
        "train",
        None if own is None else "val",
        None if test is None else "test" if "test" in splits else "val",
        ("test",) if how.fold is not None and test is not None else (),
    )


def _split_of(root: Path, file: Path) -> str:
    """Return the split of a tar file by its folder or the beginning of its name, "" for none."""
    name = file.relative_to(root).as_posix()
    return next((split for split in _SPLITS if name.startswith(split)), "")


def _list_all(root: Path, files: Sequence[Path], kept: Path | None) -> tuple[Shards, list[str]]:
    """Return the images of all tar files, and their labels; of a long list from the last time."""
    state = [
        [f.relative_to(root).as_posix(), f.stat().st_size, f.stat().st_mtime_ns] for f in files
    ]
    stored = None if kept is None else read_arrays(kept, lambda kept: kept == state)
    if stored is None:
        found = [
            (f"{file.relative_to(root).as_posix()}/{name}", (number, start, size), label)
            for number, file in enumerate(files)
            for name, start, size, label in _list_members(file)
        ]
        if not found:
            raise ValueError(f"{root}: the tar files hold no image with a label")
        names, places, labels = zip(*found, strict=True)
        shards = Shards(Names.of(root, names), np.array(places, np.int64), files)
        texts = Names.of(Path(), labels)
        arrays = {"places": shards.places, "label_content": texts.content, "label_ends": texts.ends}
        arrays |= {"content": shards.names.content, "ends": shards.names.ends}
        if kept is not None:
            keep_arrays(kept, arrays, state)
        return shards, [*labels]
    names = Names(root, stored["content"], stored["ends"])
    texts = Names(Path(), stored["label_content"], stored["label_ends"])
    return Shards(names, stored["places"], files), [texts.name(row) for row in range(len(texts))]


def _list_members(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield name, start, size and label of each image of a tar file."""
    images, labels = dict[str, tuple[str, int, int]](), dict[str, str]()
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, suffix = os.path.splitext(member.name)  # noqa: PTH122
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = member.name, member.offset_data, member.size
                elif suffix in (".cls", ".json"):
                    file = archive.extractfile(member)
                    labels[key] = _read_label(path, member, file.read(4096) if file else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error
    for key, found in images.items():
        if key not in labels:
            raise ValueError(f"{path}: {found[0]} has no label: {key}.cls is missing")
        yield *found, labels[key]


def _read_label(path: Path, member: tarfile.TarInfo, content: bytes) -> str:
    """Return the label in a file `KEY.cls` or `KEY.json` of a tar file."""
    try:
        text = content.decode().strip()
        label = str(json.loads(text)["label"]) if member.name.endswith(".json") else text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {member.name} holds no label: {shorten(str(error))}") from error
    if not label:
        raise ValueError(f"{path}: {member.name} holds no label")
    return label


def _number_classes(root: Path, labels: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the classes, and the label of each image, (N,)."""
    own, listed = {*labels}, root / "classes.txt"
    if all(text.isdecimal() for text in own):
        numbers = torch.tensor([int(text) for text in labels])
        count = int(numbers.max()) + 1
        lines = listed.read_text().split("\n") if listed.is_file() else [*map(str, range(count))]
        classes = tuple(line.strip() for line in lines if line.strip())
        if count > len(classes):
            raise ValueError(f"{listed} has {len(classes)} names, but there is a label {count - 1}")
        return classes, numbers
    classes = tuple(sorted(own))
    places = {name: number for number, name in enumerate(classes)}
    return classes, torch.tensor([places[text] for text in labels])
