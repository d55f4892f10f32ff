"""Data sets in memory: the bundled digits, CIFAR, and folders of images."""

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from spem._checks import check_choice, check_switch
from spem._extras import needs_extra
from spem._files import check_path
from spem._messages import shorten
from spem._schema import Fraction, Pixels, Seed, Text, Workers, check_fold, check_value
from spem.data import cifar
from spem.data.batches import Split
from spem.data.folders import list_folder
from spem.data.images import ImageForm
from spem.data.reading import Loader, OnBadImage
from spem.data.shard_lists import has_shards, list_shards
from spem.data.sources import TEST_FRACTION, Reading, Source, read_source
from spem.data.splits import Dataset, Fold, hold_out, take_fold
from spem.data.tables import list_table


def image_format(name: str) -> tuple[int, int]:
    """Return the number of channels and the default side, in pixels, of a data set's images."""
    return (1, 8) if name == "digits" else (3, 32)


def load_dataset(
    name: str,
    *,
    data_dir: str | Path = "data",
    download: bool = False,
    validation: float | None = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    interpolation: str | None = None,
    crop_ratio: float | None = None,
    on_bad_image: OnBadImage = "raise",
    folds: int | None = None,
    fold: int | None = None,
    cache: str | Path | None = None,
    loader: Loader | None = None,
    workers: int = 0,
) -> Dataset:
    """Return a data set with its train, validation and test splits.

    Args:
        name: "digits", "cifar10", "cifar100" or the path of a folder of images. It contains train/,
            test/ and perhaps val/ (also called valid/ or validation/), each with one subfolder per
            class; or train/ and val/ alone, as ImageNet, where val/ is the test split; or only the
            subfolders of the classes, of whose images 20 % are drawn as the test split.
        data_dir: the folder that contains CIFAR's official folder or archive.
        download: fetch CIFAR's archive if neither is there.
        validation: fraction of train that is held out, stratified by class, unless a folder has
            its own val/; None for no validation split.
        seed: decides the splits that are drawn; the test split of digits is always the same.
        image_size: side in pixels; None for the default: 8 for digits, else 32.
        interpolation: of a folder, see `prepare_image`.
        crop_ratio: of a folder, see `prepare_image`.
        on_bad_image: of a folder: raise an error at the first image that cannot be read; or skip
            such training images, up to 1 %, but never one of another split; or list them all,
            without limit, to look at a folder.
        folds: number of equal parts, stratified by class, into which the images are divided; None:
            the splits are as said above. Where a data set has test images of its own, its training
            images are divided, and the test images are left alone.
        fold: which part is the test split, from 1; the others are the training images.
        cache: folder in which the images of a folder of 500 or more are kept once they are decoded,
            known again by the content of their files; None: they are decoded each time. The list of
            the files of a folder of 50,000 or more is kept there, too.
        loader: of a folder: "memory" decodes all images once, and "stream" each when it is needed,
            so that memory does not grow with their number; None: the latter where they take more
            than 2 GB. `Batches` are the same.
        workers: number of processes that decode streamed images ahead of their use; 0: none.

    Raises:
        ValueError: an argument is out of range, or a file is damaged.
        FileNotFoundError: CIFAR or one of its files is missing.
        ConnectionError: the download failed.
    """
    check_value("name", name, Text)
    check_path("data_dir", data_dir)
    check_switch("download", download)
    check_choice("on_bad_image", on_bad_image, get_args(OnBadImage))
    check_value("seed", seed, Seed)
    if validation is not None:
        check_value("validation", validation, Fraction)
    if image_size is not None:
        check_value("image_size", image_size, Pixels)
    for key, value in (("interpolation", interpolation), ("crop_ratio", crop_ratio)):
        if value is not None and (name == "digits" or name in cifar.LAYOUTS):
            raise ValueError(f"{key} is {shorten(value)}, must be None for {name}, no folder")
    if loader is not None:
        check_choice("loader", loader, get_args(Loader))
    if loader == "stream" and (name == "digits" or name in cifar.LAYOUTS):
        raise ValueError(f"loader is 'stream', must be None or 'memory' for {name}, no folder")
    check_value("workers", workers, Workers)
    check_fold(fold, folds)
    part = Fold(fold, folds, seed) if fold is not None and folds is not None else None
    size = image_size or image_format(name)[1]
    if name == "digits":
        dataset = _digits(size, part)
    elif name in cifar.LAYOUTS:
        dataset = _cifar(name, Path(data_dir), download, size, part)
    elif (list_source := _find_lister(Path(name))) is not None:
        form = ImageForm(size, 3, interpolation, crop_ratio)
        kept = None if cache is None else check_path("cache", cache)
        how = Reading(form, validation, seed, on_bad_image, part, kept, loader, workers)
        return read_source(list_source(Path(name), how), how)
    else:
        known = ", ".join(("digits", *cifar.LAYOUTS))
        raise ValueError(f"there is no folder {name}, nor a data set of that name; known: {known}")
    if validation is None:
        return dataset
    train, held_out = hold_out(name, dataset.train, dataset.classes, validation, seed)
    return dataset._replace(train=train, validation=held_out)


def _find_lister(path: Path) -> Callable[[Path, Reading], Source] | None:
    """Return the function that lists the images of a path, or None if there are none."""
    if path.is_dir():
        return list_shards if has_shards(path) else list_folder
    return list_table if path.suffix.lower() == ".csv" and path.is_file() else None


def _digits(size: int, fold: Fold | None) -> Dataset:
    """Return scikit-learn's 1,797 images of 8×8 pixels, their 17 grey levels scaled to bytes."""
    with needs_extra("train"):
        from sklearn.datasets import load_digits
    levels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = levels.mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    classes = tuple("0123456789")
    whole = Split(images, labels.long())
    if fold is None:
        train, test = hold_out("digits", whole, classes, TEST_FRACTION, seed=0)
    else:
        train, test = take_fold("digits", whole, classes, fold)
    return Dataset("digits", _resize(train, size), None, _resize(test, size), classes)


def _cifar(name: str, data_dir: Path, download: bool, size: int, fold: Fold | None) -> Dataset:
    layout = cifar.LAYOUTS[name]
    source = cifar.find(layout, data_dir)
    if source is None and not download:
        places = f"neither {data_dir / layout.folder} nor {data_dir / layout.archive}"
        raise FileNotFoundError(f"{name}: found {places}; --download fetches the archive")
    train, test, classes = cifar.read(layout, source or _download(layout, data_dir))
    if fold is not None:
        train, test = take_fold(name, train, classes, fold)
    return Dataset(name, _resize(train, size), None, _resize(test, size), classes)


def _download(layout: cifar.Layout, data_dir: Path) -> Path:
    with needs_extra("train"):
        import pooch
    known = f"md5:{layout.md5}"
    try:
        # Pooch writes to a temporary file and renames it once the sum is right.
        return Path(pooch.retrieve(layout.url, known, fname=layout.archive, path=data_dir))
    except (OSError, ValueError) as error:
        raise ConnectionError(f"{layout.url} could not be downloaded: {error}") from error


def _resize(split: Split, size: int) -> Split:
    if split.images.shape[2:] == (size, size):
        return split
    images = F.interpolate(
        cast(Tensor, split.images), (size, size), mode="bilinear", antialias=True
    )
    return split._replace(images=images)
