"""Folders of images: the layouts that are known, and their images as splits."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from spem.data.batches import Split
from spem.data.cache import Decoder
from spem.data.images import ImageForm, find_images
from spem.data.splits import Dataset, Fold, FolderFacts, draw, draw_fold

TEST_FRACTION = 0.2
_VALIDATION = ("val", "valid", "validation")
# At most one unreadable image of so many is skipped.
_READABLE = 100

OnBadImage = Literal["raise", "skip", "list"]


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


class _Listing(NamedTuple):
    """Picture files and their labels."""

    files: Sequence[Path]
    labels: Sequence[int]

    def take(self, rows: Sequence[int]) -> "_Listing":
        return _Listing([self.files[row] for row in rows], [self.labels[row] for row in rows])


class _Reader:
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

    def read(self, name: str, listing: _Listing) -> Split:
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
        return Split(images[rows] if errors else images, torch.tensor(labels))

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
        if len(errors) > max(1, count // _READABLE):
            raise ValueError(
                f"{len(errors)} of {count} training images or more cannot be read, and at most"
                f" 1 %, or one, is skipped: {'; '.join(errors[:3])}; remove them"
                " (`spem data FOLDER` lists all)"
            )


def read_folder(
    root: Path,
    form: ImageForm,
    validation: float | None,
    seed: int,
    on_bad_image: OnBadImage,
    fold: Fold | None = None,
    cache: Path | None = None,
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

    Raises:
        ValueError: the folder has no known layout, or images cannot be read.
    """
    layout = find_layout(root)
    classes = _subfolders(layout.train)
    if len(classes) < 2:
        raise ValueError(f"{root} holds {len(classes)} folders of classes; at least 2 are needed")
    train, held_out, test = _list_splits(root, layout, classes, validation, seed, fold)
    count = sum(len(each.files) for each in (train, held_out, test) if each)
    decoder = Decoder(root, form, count, cache)
    reader = _Reader(decoder, form, on_bad_image, skips=() if fold else ("train",))
    split = reader.read("train", train)
    if not (counts := split.labels.bincount(minlength=len(classes))).all():
        empty = classes[int(counts.argmin())]
        raise ValueError(
            f"{root}: no training image of class '{empty}' can be read: {reader.unreadable[0]}"
        )
    own = None if held_out is None else reader.read("validation", held_out)
    measured = reader.read("test", test)
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
) -> tuple[_Listing, _Listing | None, _Listing]:
    """Return the files of the train, the validation and the test split."""

    def hold_out(listing: _Listing, fraction: float) -> tuple[_Listing, _Listing]:
        rest, held_out = draw(str(root), torch.tensor(listing.labels), classes, fraction, seed)
        return listing.take(rest), listing.take(held_out)

    train, held_out = _list_classes(layout.train, classes), None
    if fold is not None:
        parts = draw_fold(str(root), torch.tensor(train.labels), classes, fold)
        train, test = map(train.take, parts)
    elif layout.test is None:
        train, test = hold_out(train, TEST_FRACTION)
    else:
        test = _list_classes(layout.test, classes)
    if validation is not None and layout.validation is not None:
        held_out = _list_classes(layout.validation, classes)
    elif validation is not None:
        train, held_out = hold_out(train, validation)
    return train, held_out, test


def _list_classes(folder: Path, classes: tuple[str, ...]) -> _Listing:
    """Return the files of one split, sorted by class, then by path."""
    strangers = set(_subfolders(folder)).difference(classes)
    if strangers:
        raise ValueError(f"{folder} has the class '{min(strangers)}', which train lacks")
    files, labels = [], []
    for label, name in enumerate(classes):
        own = find_images(folder / name)
        files += own
        labels += [label] * len(own)
    return _Listing(files, labels)


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
