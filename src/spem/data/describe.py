"""A data set in a few lines: its splits, how a folder was understood, what is wrong with it."""

from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from spem.data.batches import Split
from spem.data.splits import Dataset, FolderFacts
from spem.data.stream import Pictures


class Duplicate(NamedTuple):
    """A file whose image, as the network gets it, is that of an earlier file."""

    file: Path
    earlier: Path


def describe(dataset: Dataset) -> list[str]:
    """Return what there is to know of a data set before a training, in one line each.

    Args:
        dataset: of a folder, whose layout, sizes, unused folders, unreadable images and duplicates
            are named, or of another kind.
    """
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = [f"{len(split.labels):,} {name}" for name, split in parts.items() if split]
    height, width = dataset.train.images.shape[2:]
    lines = [
        f"data: {dataset.name}, {len(dataset.classes)} classes;"
        f" {', '.join(counts[:-1])} and {counts[-1]} images of {width}×{height} pixels"
    ]
    if (facts := dataset.folder) is not None:
        lines += [f"layout: {facts.layout}", _describe_sizes(facts, width, height)]
        if facts.unused:
            lines.append(f"not used: {', '.join(f'{name}/' for name in facts.unused)}")
        lines += [f"left out: {sentence}" for sentence in facts.unreadable]
        lines += _describe_duplicates(dataset)
    return lines


def find_duplicates(dataset: Dataset) -> list[Duplicate]:
    """Return the files of a folder's splits whose image is in another split, too.

    Of folds also those with two files in one split, unless this is the test split, for another fold
    may part them. Images are compared as the network gets them, so a copy in another format or
    under another name is found; those of a folder that is streamed are not compared.
    """
    first: dict[bytes, tuple[str, Path]] = {}
    found, folds = list[Duplicate](), dataset.folder.folds if dataset.folder else None
    if dataset.folder is None or isinstance(dataset.train.images, Pictures):
        return []  # all pictures would be read
    for name, files in dataset.folder.files.items():
        for image, file in zip(getattr(dataset, name).images, files, strict=True):
            content = blake2b(image.numpy().tobytes(), digest_size=16).digest()
            earlier = first.setdefault(content, (name, file))
            parted = folds and name != "test" and earlier[1] != file
            if earlier[0] != name or parted:
                found.append(Duplicate(file, earlier[1]))
    return found


def count_classes(dataset: Dataset) -> list[tuple[str, int, int | None, int]]:
    """Return name, training, validation and test images of each class, and of all together."""

    def counts(split: Split) -> list[int]:
        each = split.labels.bincount(minlength=len(dataset.classes)).tolist()
        return [*each, sum(each)]

    held_out = dataset.validation
    validation = [None] * (len(dataset.classes) + 1) if held_out is None else counts(held_out)
    columns = (counts(dataset.train), validation, counts(dataset.test))
    return list(zip((*dataset.classes, "all classes"), *columns, strict=True))


def _describe_sizes(facts: FolderFacts, width: int, height: int) -> str:
    if not facts.sizes:
        return f"files: streamed, brought to {width}×{height} pixels (image_size)"
    ends = (choose(facts.sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
    found = " to ".join(dict.fromkeys(f"{w}×{h}" for w, h in ends))
    return f"files: {found} pixels, brought to {width}×{height} (image_size)"


def _describe_duplicates(dataset: Dataset) -> list[str]:
    found, root = find_duplicates(dataset), Path(dataset.name)
    root = root if root.is_dir() else root.parent  # of a table
    if not found:
        return []
    pairs = [
        " = ".join(str(file.relative_to(root)) for file in (each.file, each.earlier))
        for each in found[:3]
    ]
    count = f"{len(found):,} images are" if len(found) > 1 else "1 image is"
    folds = dataset.folder and dataset.folder.folds
    where = "twice in the folds" if folds else "in more than one split"
    return [
        f"duplicates: {count} {where}, so the accuracy may be too high:"
        f" {'; '.join(pairs)}{'; …' if len(found) > 3 else ''}"
    ]
