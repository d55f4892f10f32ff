"""Data sets in memory: the bundled digits, CIFAR, and folders of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spem._extras import needs_extra
from spem.data import cifar
from spem.data.batches import Split

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_FRACTION = 0.2


def image_format(name: str) -> tuple[int, int]:
    """Return the number of channels and the default side, in pixels, of a data set's images."""
    return (1, 8) if name == "digits" else (3, 32)


class Dataset(NamedTuple):
    """A data set: its splits, and the class names by label."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]


def load_dataset(
    name: str,
    *,
    data_dir: str | Path = "data",
    download: bool = False,
    validation: float | None = 0.1,
    seed: int = 0,
    image_size: int | None = None,
) -> Dataset:
    """Return a data set with its train, validation and test splits.

    Args:
        name: "digits", "cifar10", "cifar100" or the path of a folder of images. It contains train/,
            test/ and perhaps val/, each with one subfolder per class; or only these subfolders, of
            whose images 20 % are drawn as the test split.
        data_dir: the folder that contains CIFAR's official folder or archive.
        download: fetch CIFAR's archive if neither is there.
        validation: fraction of train that is held out, stratified by class, unless a folder has
            its own val/; None for no validation split.
        seed: decides the splits that are drawn; the test split of digits is always the same.
        image_size: side in pixels; None for the default: 8 for digits, else 32.

    Raises:
        ValueError: an argument is out of range, or a file is damaged.
        FileNotFoundError: CIFAR or one of its files is missing.
        ConnectionError: the download failed.
    """
    if validation is not None and not 0 < validation < 1:
        raise ValueError(f"validation is {validation}; it must be None or between 0 and 1")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1")
    size = image_size or image_format(name)[1]
    if name == "digits":
        dataset = _digits(size)
    elif name in cifar.LAYOUTS:
        dataset = _cifar(name, Path(data_dir), download, size)
    elif Path(name).is_dir():
        dataset = _image_folder(Path(name), seed, size)
    else:
        known = ", ".join(("digits", *cifar.LAYOUTS))
        raise ValueError(f"there is no folder {name}, nor a data set of that name; known: {known}")
    if validation is None:
        return dataset._replace(validation=None)
    if dataset.validation is None:
        train, held_out = _hold_out(name, dataset.train, dataset.classes, validation, seed)
        return dataset._replace(train=train, validation=held_out)
    return dataset


def prepare_image(
    image: "str | Path | Image.Image", *, size: int | Sequence[int], channels: int
) -> Tensor:
    """Return an image scaled (bilinear) until it covers the size, and cropped at its centre.

    Sixteen bits are scaled to eight. Transparency is ignored: transparent pixels keep their colour.

    Args:
        image: the path of an image file, or a Pillow image.
        size: the side, or (H, W), in pixels.
        channels: C, 1 (grey) or 3 (RGB).

    Returns:
        uint8, (C, H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image, its pixels are floating-point numbers, or
            `channels` is neither 1 nor 3.
    """
    with needs_extra("train"):
        import numpy as np
        from PIL import Image, ImageOps
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; an image file has 1 (grey) or 3 (RGB)")
    height, width = (size, size) if isinstance(size, int) else size
    loaded = image if isinstance(image, Image.Image) else _open(Path(image))
    if loaded.mode == "F":
        raise ValueError(f"{image} has floating-point pixels, whose range is unknown")
    converted = _eight_bits(loaded).convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).view(height, width, channels).permute(2, 0, 1)


def _open(path: Path) -> "Image.Image":
    """Return a decoded image, turned upright as its EXIF data say."""
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    # Pillow's decoders raise many kinds of exceptions, SyntaxError among them.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Return an image of 16-bit grey, which Pillow would clip to white, in 8 bits."""
    import numpy as np
    from PIL import Image

    levels = np.asarray(image)
    # Pillow's mode I has 32 bits; its values come from 16 bits of a file, or from 8.
    if image.mode.startswith("I;16") or (image.mode == "I" and levels.max() > 255):
        return Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
    return image


def _digits(size: int) -> Dataset:
    """Return scikit-learn's 1,797 images of 8×8 pixels, their 17 grey levels scaled to bytes."""
    with needs_extra("train"):
        from sklearn.datasets import load_digits
    levels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = levels.mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    classes = tuple("0123456789")
    whole = Split(images, labels.long())
    train, test = _hold_out("digits", whole, classes, TEST_FRACTION, seed=0)
    return Dataset("digits", _resize(train, size), None, _resize(test, size), classes)


def _cifar(name: str, data_dir: Path, download: bool, size: int) -> Dataset:
    layout = cifar.LAYOUTS[name]
    source = cifar.find(layout, data_dir)
    if source is None and not download:
        places = f"neither {data_dir / layout.folder} nor {data_dir / layout.archive}"
        raise FileNotFoundError(f"{name}: found {places}; --download fetches the archive")
    train, test, classes = cifar.read(layout, source or _download(layout, data_dir))
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


def _image_folder(root: Path, seed: int, size: int) -> Dataset:
    own = {"train", "val", "test"}.intersection(_subfolders(root))
    if own and not own >= {"train", "test"}:
        raise ValueError(f"{root} has {' and '.join(sorted(own))}; train and test are both needed")
    classes = _subfolders(root / "train" if own else root)
    if len(classes) < 2:
        raise ValueError(f"{root} holds {len(classes)} folders of classes; at least 2 are needed")
    if own:
        splits = {part: _read_classes(root / part, classes, size) for part in sorted(own)}
    else:
        whole = _read_classes(root, classes, size)
        parts = _hold_out(str(root), whole, classes, TEST_FRACTION, seed)
        splits: dict[str, Split] = dict(zip(("train", "test"), parts, strict=True))
    return Dataset(str(root), splits["train"], splits.get("val"), splits["test"], classes)


def _subfolders(folder: Path) -> tuple[str, ...]:
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".")))


def _read_classes(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    """Return the images of one split, sorted by class, then by path."""
    strangers = set(_subfolders(folder)).difference(classes)
    if strangers:
        raise ValueError(f"{folder} has the class '{min(strangers)}', which train lacks")
    images, labels = [], []
    for label, name in enumerate(classes):
        below = sorted((folder / name).rglob("*"))
        files = [path for path in below if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"{folder / name} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        images += [prepare_image(file, size=size, channels=3) for file in files]
        labels += [label] * len(files)
    return Split(torch.stack(images), torch.tensor(labels))


def _hold_out(
    name: str, split: Split, classes: tuple[str, ...], fraction: float, seed: int
) -> tuple[Split, Split]:
    """Return what remains of a split, and the part held out of it, stratified by class."""
    with needs_extra("train"):
        from sklearn.model_selection import train_test_split
    counts = split.labels.bincount(minlength=len(classes))
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"{name}: only 1 image of class '{rarest}' is left to hold one out of")
    rows = range(len(split.labels))
    try:
        parts = train_test_split(
            rows, test_size=fraction, random_state=seed, stratify=split.labels.numpy()
        )
    except ValueError as error:
        what = f"{fraction:g} of {len(rows)} images of {len(classes)} classes"
        raise ValueError(f"{name}: {what} cannot be held out: {error}") from error
    rest, held_out = (Split(split.images[part], split.labels[part]) for part in parts)
    return rest, held_out


def _resize(split: Split, size: int) -> Split:
    if split.images.shape[2:] == (size, size):
        return split
    images = F.interpolate(split.images, (size, size), mode="bilinear", antialias=True)
    return split._replace(images=images)
