"""A data set as its splits, and how one split is drawn out of another."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from spem._extras import needs_extra
from spem.data.batches import Split


class FolderFacts(NamedTuple):
    """What was found in a folder of images.

    Attributes:
        layout: where the splits come from, in words.
        unused: names of its folders that are not used.
        sizes: width and height in pixels of every image, before it is scaled.
        unreadable: one sentence for each image that was left out.
        files: of the images of each split, in their order, by its name: train, validation, test.
        folds: number of folds of which one is the test split; None where it is none of several.
    """

    layout: str
    unused: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]
    files: dict[str, Sequence[Path]]
    folds: int | None = None


class Fold(NamedTuple):
    """One of several equal parts of the images: the one that is the test split.

    Attributes:
        number: which one, from 1.
        folds: how many there are.
        seed: decides which images each of them has.
    """

    number: int
    folds: int
    seed: int


class Dataset(NamedTuple):
    """A data set: its splits, the class names by label, and for a folder what was found there."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    folder: FolderFacts | None = None

    def __repr__(self) -> str:
        """Return name, classes and splits in one line, without what the tensors hold."""
        splits = (self.train, self.validation, self.test)
        said = [f"{name}={split}" for name, split in zip(self._fields[1:4], splits, strict=True)]
        return f"Dataset({self.name!r}, {len(self.classes)} classes, {', '.join(said)})"


def sum_of_folder(dataset: Dataset) -> str | None:
    """Return a sum of the classes, images and labels of all splits of a folder, in their order.

    16 hexadecimal digits; of a folder that is streamed the names of the files stand for the images,
    and "names " before the digits. None for data sets that are no folders, which do not change.
    """
    if dataset.folder is None:
        return None
    total = hashlib.sha256(json.dumps(dataset.classes).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        for each in split or ():
            each = each.contiguous().numpy() if isinstance(each, Tensor) else each.files.content
            total.update(each.data)
        total.update(b"split")
    streamed = not isinstance(dataset.train.images, Tensor)
    return f"{'names ' * streamed}{total.hexdigest()[:16]}"


def other_images(one: str | None, other: str | None) -> bool:
    """Return whether two sums of a folder say that its images have changed.

    A sum of names and one of pixels say nothing of each other; None says nothing either.
    """
    if one is None or other is None or one.startswith("names ") != other.startswith("names "):
        return False
    return one != other


def draw(
    name: str, labels: Tensor, classes: tuple[str, ...], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Return the rows that remain of a split, and those held out of it, stratified by class.

    Args:
        name: of the data set, for errors.
        labels: of all rows, (N,).
        classes: names by label.
        fraction: of the rows that is held out.
        seed: decides which.

    Raises:
        ValueError: there are too few images.
    """
    with needs_extra("train"):
        from sklearn.model_selection import train_test_split
    counts = labels.bincount(minlength=len(classes))
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"{name}: only 1 image of class '{rarest}' is left to hold one out of")
    rows = range(len(labels))
    try:
        rest, held_out = train_test_split(
            rows, test_size=fraction, random_state=seed, stratify=labels.numpy()
        )
    except ValueError as error:
        what = f"{fraction:g} of {len(rows)} images of {len(classes)} classes"
        raise ValueError(
            f"{name}: {what} cannot be held out: {error}; give a larger fraction, or none"
        ) from error
    return list(rest), list(held_out)


def hold_out(
    name: str, split: Split, classes: tuple[str, ...], fraction: float, seed: int
) -> tuple[Split, Split]:
    """Return what remains of a split, and the part held out of it; see `draw`."""
    return _take(split, draw(name, split.labels, classes, fraction, seed))


def draw_fold(
    name: str, labels: Tensor, classes: tuple[str, ...], fold: Fold
) -> tuple[list[int], list[int]]:
    """Return the rows of the other folds, and those of one fold, stratified by class.

    Every row is in one of the folds.

    Args:
        name: of the data set, for errors.
        labels: of all rows, (N,).
        classes: names by label.
        fold: which one.

    Raises:
        ValueError: a class has fewer images than there are folds.
    """
    with needs_extra("train"):
        from sklearn.model_selection import StratifiedKFold
    counts = labels.bincount(minlength=len(classes))
    if (fewest := int(counts.min())) < fold.folds:
        rarest = classes[int(counts.argmin())]
        raise ValueError(
            f"{name}: folds is {fold.folds}, must be at most {fewest}, the number of images of the"
            f" rarest class '{rarest}'"
        )
    drawn = StratifiedKFold(fold.folds, shuffle=True, random_state=fold.seed)
    parts = drawn.split(labels.numpy(), labels.numpy())
    rest, own = next(part for number, part in enumerate(parts, 1) if number == fold.number)
    return rest.tolist(), own.tolist()


def take_fold(name: str, split: Split, classes: tuple[str, ...], fold: Fold) -> tuple[Split, Split]:
    """Return the other folds of a split, and one fold of it; see `draw_fold`."""
    return _take(split, draw_fold(name, split.labels, classes, fold))


def _take(split: Split, parts: tuple[list[int], list[int]]) -> tuple[Split, Split]:
    one, other = (Split(split.images[rows], split.labels[rows]) for rows in parts)
    return one, other
