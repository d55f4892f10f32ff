"""Where images come from, and how they become the splits of a data set."""

import math
from pathlib import Path
from typing import NamedTuple

from spem.data.cache import Decoder
from spem.data.images import ImageForm
from spem.data.reading import Listing, Loader, OnBadImage, Reader, Streamer
from spem.data.shards import Shards
from spem.data.splits import Dataset, Fold, FolderFacts, draw, draw_fold

TEST_FRACTION = 0.2
# More images, once they are decoded, are streamed.
_MOST_BYTES = 1 << 31


class Reading(NamedTuple):
    """How the images of a source are read; see `load_dataset` for most of it.

    Attributes:
        form: what images are brought to.
        validation: fraction of the training images held out where the source has no validation
            images; None: no validation split.
        seed: decides the splits that are drawn.
        on_bad_image: raise an error at the first image that cannot be read; or skip such training
            images, up to 1 % or one; or list them all, without limit, to look at a source.
        fold: of the training images, the test split; None: the source's own, or one that is drawn.
        cache: folder for decoded images and long lists.
        loader: memory, stream, or None for what fits.
        workers: processes that decode streamed images.
    """

    form: ImageForm
    validation: float | None
    seed: int
    on_bad_image: OnBadImage
    fold: Fold | None = None
    cache: Path | None = None
    loader: Loader | None = None
    workers: int = 0


class Source(NamedTuple):
    """The files of a folder, a table or shards, before any of their images is decoded.

    Attributes:
        name: as it was given.
        classes: names by label.
        train: files and labels.
        validation: its own; None: held out of `train`, or not wanted.
        test: its own; None: drawn from `train`, or a fold of it.
        pool: in words, what `train` is where the test split is drawn from it.
        train_name, validation_name, test_name: what the splits are called there; None: it has none.
        unused: names of its parts that are none of these.
    """

    name: str
    classes: tuple[str, ...]
    train: Listing
    validation: Listing | None
    test: Listing | None
    pool: str
    train_name: str | None
    validation_name: str | None
    test_name: str | None
    unused: tuple[str, ...] = ()


def read_source(source: Source, how: Reading) -> Dataset:
    """Return the splits of a source.

    Which images a split has follows from the names of the files, before any is read: an unreadable
    one changes no split.

    Raises:
        ValueError: there are too few images, or some cannot be read.
    """
    train, held_out, test = _draw_splits(source, how)
    count = sum(len(each.files) for each in (train, held_out, test) if each)
    if _streams(source, how, count):
        decoder, reader = None, Streamer(how.form, how.workers, how.on_bad_image)
    else:
        decoder = Decoder(Path(source.name), how.form, count, how.cache)
        skips = () if how.fold else ("train",)
        reader = Reader(decoder, how.form, how.on_bad_image, skips)
    split = reader.read("train", train)
    if not (counts := split.labels.bincount(minlength=len(source.classes))).all():
        empty = source.classes[int(counts.argmin())]
        raise ValueError(
            f"{source.name}: no training image of class '{empty}' can be read:"
            f" {reader.unreadable[0]}"
        )
    own = None if held_out is None else reader.read("validation", held_out)
    measured = reader.read("test", test)
    if decoder is not None:
        decoder.keep()
    facts = FolderFacts(
        _describe_splits(source, how),
        source.unused,
        tuple(reader.sizes),
        tuple(reader.unreadable),
        reader.files,
        how.fold and how.fold.folds,
    )
    return Dataset(source.name, split, own, measured, source.classes, facts)


def _draw_splits(source: Source, how: Reading) -> tuple[Listing, Listing | None, Listing]:
    """Return the files of the train, the validation and the test split."""

    def hold_out(listing: Listing, fraction: float) -> tuple[Listing, Listing]:
        parts = draw(source.name, listing.labels, source.classes, fraction, how.seed)
        return listing.take(parts[0]), listing.take(parts[1])

    train, held_out, test = source.train, source.validation, source.test
    if how.fold is not None:
        parts = draw_fold(source.name, train.labels, source.classes, how.fold)
        train, test = map(train.take, parts)
    elif test is None:
        train, test = hold_out(train, TEST_FRACTION)
    if held_out is None and how.validation is not None:
        train, held_out = hold_out(train, how.validation)
    return train, held_out, test


def _streams(source: Source, how: Reading, count: int) -> bool:
    """Return whether so many images are streamed: those of tar files always."""
    if isinstance(source.train.files, Shards):
        if how.loader == "memory":
            raise ValueError(f"loader is 'memory', must be 'stream' or None for {source.pool}")
        return True
    if how.on_bad_image == "list":
        return False
    if how.loader is None:
        return count * how.form.channels * math.prod(how.form.sides) > _MOST_BYTES
    return how.loader == "stream"


def _describe_splits(source: Source, how: Reading) -> str:
    """Return in words where the splits come from."""
    own, fold = source.validation_name, how.fold
    if fold is not None:
        rest = "the other folds"
        words = f"{source.pool} in {fold.folds} folds; fold {fold.number} is the test split"
    elif source.test is None:
        rest = "the rest"
        words = f"{source.pool}; {100 * TEST_FRACTION:g} % of the images are the test split"
    else:
        rest = source.train_name
        words = f"{rest} is for training, {source.test_name} is the test split"
    if how.validation is None:
        return f"{words}; {f'{own} is not used' if own else 'none for validation'}"
    return f"{words}; {own or f'{100 * how.validation:g} % of {rest}'} is for validation"
