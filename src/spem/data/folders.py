"""Folders of images: the layouts that are known, and their images as splits."""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from spem.data.cache import Decoder
from spem.data.images import ImageForm, no_image
from spem.data.names import Names, list_images
from spem.data.reading import Listing, Loader, OnBadImage, Reader, Streamer
from spem.data.splits import Dataset, Fold, FolderFacts, draw, draw_fold

TEST_FRACTION = 0.2
_VALIDATION = ("val", "valid", "validation")
# More images, once they are decoded, are streamed.
_MOST_BYTES = 1 << 31


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


def read_folder(
    root: Path,
    form: ImageForm,
    validation: float | None,
    seed: int,
    on_bad_image: OnBadImage,
    fold: Fold | None = None,
    cache: Path | None = None,
    loader: Loader | None = None,
    workers: int = 0,
) -> Dataset:
    """Return the splits of a folder of images; see `load_dataset` for what it may contain.

    Which images a split has follows from the names of the files, before any is read: an unreadable
    one changes no split.

    Args:
        root: the folder.
        form: what images are brought to.
        validation: fraction of the training images held out where the folder has no validation
            images; None: no validation split.
        seed: decides the splits that are drawn.
        on_bad_image: raise an error at the first image that cannot be read; or skip such training
            images, up to 1 % or one; or list them all, without limit, to look at a folder.
        fold: of the training images, the test split; None: the folder's own, or one that is drawn.
        cache: see `load_dataset`.
        loader: see `load_dataset`.
        workers: see `load_dataset`.

    Raises:
        ValueError: the folder has no known layout, or images cannot be read.
    """
    layout = find_layout(root)
    classes = _subfolders(layout.train)
    if len(classes) < 2:
        raise ValueError(f"{root} holds {len(classes)} folders of classes; at least 2 are needed")
    kept = None if cache is None else cache / _name_list(root)
    train, held_out, test = _list_splits(root, layout, classes, validation, seed, fold, kept)
    count = sum(len(each.files) for each in (train, held_out, test) if each)
    if on_bad_image != "list" and _streams(loader, count, form):
        decoder, reader = None, Streamer(form, workers, on_bad_image)
    else:
        decoder = Decoder(root, form, count, cache)
        reader = Reader(decoder, form, on_bad_image, skips=() if fold else ("train",))
    split = reader.read("train", train)
    if not (counts := split.labels.bincount(minlength=len(classes))).all():
        empty = classes[int(counts.argmin())]
        raise ValueError(
            f"{root}: no training image of class '{empty}' can be read: {reader.unreadable[0]}"
        )
    own = None if held_out is None else reader.read("validation", held_out)
    measured = reader.read("test", test)
    if decoder is not None:
        decoder.keep()
    facts = FolderFacts(
        _describe_layout(layout, validation, fold),
        (layout.test.name, *layout.unused) if fold and layout.test else layout.unused,
        tuple(reader.sizes),
        tuple(reader.unreadable),
        reader.files,
        fold and fold.folds,
    )
    return Dataset(str(root), split, own, measured, classes, facts)


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


def _list_splits(
    root: Path,
    layout: Layout,
    classes: tuple[str, ...],
    validation: float | None,
    seed: int,
    fold: Fold | None,
    kept: Path | None,
) -> tuple[Listing, Listing | None, Listing]:
    """Return the files of the train, the validation and the test split."""

    def hold_out(listing: Listing, fraction: float) -> tuple[Listing, Listing]:
        rest, held_out = draw(str(root), listing.labels, classes, fraction, seed)
        return listing.take(rest), listing.take(held_out)

    own_test = None if fold is not None else layout.test
    own_validation = None if validation is None else layout.validation
    folders = [each for each in (layout.train, own_test, own_validation) if each]
    listed = dict(zip(folders, _list_classes(root, folders, classes, kept), strict=True))
    train, held_out = listed[layout.train], None
    if fold is not None:
        parts = draw_fold(str(root), train.labels, classes, fold)
        train, test = map(train.take, parts)
    elif own_test is None:
        train, test = hold_out(train, TEST_FRACTION)
    else:
        test = listed[own_test]
    if own_validation is not None:
        held_out = listed[own_validation]
    elif validation is not None:
        train, held_out = hold_out(train, validation)
    return train, held_out, test


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


def _streams(loader: Loader | None, count: int, form: ImageForm) -> bool:
    """Return whether so many images are streamed."""
    if loader is None:
        return count * form.channels * math.prod(form.sides) > _MOST_BYTES
    return loader == "stream"


def _name_list(root: Path) -> str:
    """Return the name of the file in which the list of a folder's pictures is kept."""
    own = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return f"{root.resolve().name}-{own}.list.safetensors"


def _describe_layout(layout: Layout, validation: float | None, fold: Fold | None) -> str:
    """Return in words where the splits come from."""
    if fold is not None:
        rest = "the other folds"
        pool = "one folder per class" if layout.test is None else f"{layout.train.name}/"
        words = f"{pool} in {fold.folds} folds; fold {fold.number} is the test split"
    elif layout.test is None:
        rest = "the rest"
        words = f"one folder per class; {100 * TEST_FRACTION:g} % of the images are the test split"
    else:
        rest = f"{layout.train.name}/"
        words = f"{rest} is for training, {layout.test.name}/ is the test split"
    own = layout.validation and f"{layout.validation.name}/"
    if validation is None:
        return f"{words}; {f'{own} is not used' if own else 'none for validation'}"
    return f"{words}; {own or f'{100 * validation:g} % of {rest}'} is for validation"


def _subfolders(folder: Path) -> tuple[str, ...]:
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".")))
