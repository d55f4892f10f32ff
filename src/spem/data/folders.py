"""Folders of images: the layouts that are known, and the files of their splits."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from spem.data.images import no_image
from spem.data.names import Names, list_images
from spem.data.reading import Listing
from spem.data.sources import Reading, Source

_VALIDATION = ("val", "valid", "validation")


class Layout(NamedTuple):
    """The folders, each with one folder per class, in which the splits of a folder lie.

    Attributes:
        train: of the training images.
        validation: of the validation images; None: they are held out of the training images.
        test: of the test images; None: they are drawn from the training images.
        unused: names of the folders that are none of these.
    """

    train: Path
    validation: Path | None
    test: Path | None
    unused: tuple[str, ...]


def list_folder(root: Path, how: Reading) -> Source:
    """Return the files of a folder of images; see `load_dataset` for what it may contain.

    Args:
        root: the folder.
        how: the list of a long one is kept in its cache.

    Raises:
        ValueError: the folder has no known layout.
    """
    layout = find_layout(root)
    classes = _subfolders(layout.train)
    if len(classes) < 2:
        raise ValueError(f"{root} holds {len(classes)} folders of classes; at least 2 are needed")
    test = None if how.fold is not None else layout.test
    validation = None if how.validation is None else layout.validation
    folders = [each for each in (layout.train, test, validation) if each]
    kept = None if how.cache is None else how.cache / _name_list(root)
    lists = _list_classes(root, folders, classes, kept)
    listed: dict[Path | None, Listing] = dict(zip(folders, lists, strict=True))
    own = [part and f"{part.name}/" for part in (layout.train, layout.validation, layout.test)]
    return Source(
        name=str(root),
        classes=classes,
        train=listed[layout.train],
        validation=listed.get(validation),
        test=listed.get(test),
        pool="one folder per class" if layout.test is None else f"{layout.train.name}/",
        train_name=own[0],
        validation_name=own[1],
        test_name=own[2],
        unused=(layout.test.name, *layout.unused) if how.fold and layout.test else layout.unused,
    )


def find_layout(root: Path) -> Layout:
    """Return where the splits of a folder lie.

    Raises:
        ValueError: it has one of the known folders, but not those that are needed with it.
    """
    names = _subfolders(root)
    own = [name for name in names if name in ("train", "test", *_VALIDATION)]
    if not {"train", "test", "val"} & {*own}:  # without train, "valid" may be a class
        return Layout(root, None, None, ())
    if "train" not in own or own == ["train"]:
        raise ValueError(f"{root} has {' and '.join(own)}; train and test (or val) are both needed")
    held_out = next((name for name in _VALIDATION if name in own), None)
    validation = root / held_out if held_out else None
    test = root / "test"
    if "test" not in own:  # ImageNet's layout
        validation, test = None, validation
    used = {"train", "test", held_out}
    return Layout(root / "train", validation, test, tuple(n for n in names if n not in used))


def _list_classes(
    root: Path, folders: Sequence[Path], classes: tuple[str, ...], kept: Path | None
) -> Iterator[Listing]:
    """Yield the files of each split's folder, sorted by class, then by path."""
    for folder in folders:
        strangers = set(_subfolders(folder)).difference(classes)
        if strangers:
            raise ValueError(f"{folder} has the class '{min(strangers)}', which train lacks")
        if missing := set(classes).difference(_subfolders(folder)):
            raise no_image(folder / min(missing))
    below = [folder.relative_to(root) / name for folder in folders for name in classes]
    lists = list_images(root, [path.as_posix() for path in below], kept)
    for path, files in zip(below, lists, strict=True):
        if not len(files):
            raise no_image(root / path)
    for start in range(0, len(lists), len(classes)):
        own = lists[start : start + len(classes)]
        counts = torch.tensor([len(files) for files in own])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        yield Listing(Names.join(own), labels)


def _name_list(root: Path) -> str:
    """Return the name of the file in which the list of a folder's pictures is kept."""
    own = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return f"{root.resolve().name}-{own}.list.safetensors"


def _subfolders(folder: Path) -> tuple[str, ...]:
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".")))
