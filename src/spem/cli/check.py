"""`spem explain --check`: whether class activation maps show what the answers depend on."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spem._files import write_table
from spem._messages import printable, say
from spem.cli.trained import Trained
from spem.compare.tables import show

if TYPE_CHECKING:
    from torch import Tensor

    from spem.data import Split
    from spem.explain import CamChecks

_POSITIONS = 2**20  # of a batch: 20 images of 224 pixels, 256 small ones
_CURVES = ("deletion", "random_deletion", "insertion", "random_insertion")
_WORDS = {
    "images": "images",
    "deletion": "deletion",
    "random_deletion": "deletion, random map",
    "insertion": "insertion",
    "random_insertion": "insertion, random map",
    "similarity": "like shuffled weights",
}
_LEGEND = """\
deletion: area under the probability of the class as pixels are deleted, less is better;
insertion: as they are inserted into a blurred image, more is better; random map: the same with
a map drawn at random; like shuffled weights: rank correlation with the map of the network with
shuffled weights, near 0 is better. ± is half of the 95 % interval over the images. Of one network
a kind this says nothing of the kind."""


def check_networks(
    networks: Sequence[Trained],
    images: Sequence[str],
    folder: Path,
    most: int,
    *,
    class_: str | None,
    **options: Any,
) -> int:
    """Check the maps of networks, show a table, and write check.csv, curves.png and curves.csv.

    Args:
        networks: of the same classes.
        images: picture files and folders; empty for the test images of the data set.
        folder: for the files.
        most: number of images at most.
        class_: of which the maps speak; None for the predicted class of each network.
        options: `method` and `layer` of `compute_cams`.

    Returns:
        1 where a picture could not be read, else 0.
    """
    from spem.explain.figures import draw_curves

    found, rows, unreadable = {}, [], []
    for network in networks:
        classes = network.config["classes"]
        label = None if class_ is None else classes.index(class_)
        files, split, unreadable = _choose_images(network, images, most)
        found[network.name] = checked = _check(network, split, classes=label, **options)
        names = (classes[n] for n in checked.classes.tolist())
        for file, name, values in zip(files, names, _areas(checked), strict=True):
            own = {key: f"{value:.7g}" for key, value in values.items()}
            rows.append({"network": network.name, "picture": file, "class": name} | own)
    write_table(folder / "check.csv", rows)
    count = len(rows) // len(networks)
    draw_curves(folder / "curves.png", found, f"{options['method']}, {count:,} images")
    cells = [_describe(checked) for checked in found.values()]
    show(["", *found], ((words, *(own[key] for own in cells)) for key, words in _WORDS.items()))
    print(_LEGEND)
    say(f"check.csv, curves.png: in {folder}")
    for sentence in unreadable:
        print(printable(f"spem: not checked: {sentence}"), file=sys.stderr)
    return int(bool(unreadable))


def _choose_images(
    network: Trained, images: Sequence[str], most: int
) -> tuple[list[str], "Split", list[str]]:
    """Return names and pixels of the images to check, and a sentence for each unreadable one."""
    import torch

    from spem.data import Split
    from spem.train.prediction import list_pictures, read_pictures

    generator = torch.Generator().manual_seed(0)
    if not images:
        test = network.load_data().test
        chosen = torch.randperm(len(test.labels), generator=generator)[:most].sort().values
        names = [f"test image {row}" for row in chosen.tolist()]
        return names, Split(test.images[chosen.tolist()], test.labels[chosen]), []
    pictures = list_pictures(images)
    chosen = torch.randperm(len(pictures), generator=generator)[:most].sort().values
    read, pixels, unreadable = read_pictures([pictures[n] for n in chosen.tolist()], network.config)
    if not read:
        raise ValueError(f"no picture can be read: {unreadable[0]}")
    return [*map(str, read)], Split(pixels, torch.zeros(len(read), dtype=torch.int64)), unreadable


def _check(network: Trained, split: "Split", **options: Any) -> "CamChecks":
    """Return the checks of all images of a split."""
    import torch

    from spem.data import Batches
    from spem.explain import CamChecks, check_cams
    from spem.explain.checks import shuffle_weights

    size = min(256, max(1, _POSITIONS // split.images.shape[2:].numel()))
    prepared: dict[str, Any] = {key: network.config[key] for key in ("mean", "std")}
    batches = Batches(split, size, **prepared, device=network.device)
    shuffled, parts = None, []
    for number, (pixels, _) in enumerate(batches.in_order()):
        if shuffled is None:
            shuffled = shuffle_weights(network.model, pixels)
        parts.append(check_cams(network.model, pixels, shuffled=shuffled, seed=number, **options))
    return CamChecks(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _areas(checked: "CamChecks") -> list[dict[str, float]]:
    """Return the areas under the curves of each image, and how like the shuffled map it is."""
    from spem.explain.checks import area

    columns: dict[str, Tensor] = {name: area(getattr(checked, name)) for name in _CURVES}
    columns["similarity"] = checked.similarity
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, each, strict=True)) for each in values]


def _describe(checked: "CamChecks") -> dict[str, object]:
    """Return what the table says of a network, by the keys of its rows."""
    from spem.report.significance import summary

    values = _areas(checked)
    cells: dict[str, object] = {"images": len(values)}
    for key in values[0]:
        of = summary([each[key] for each in values])
        half = "" if of.low is None else f" ± {of.mean - of.low:.3f}"
        cells[key] = f"{of.mean:.3f}{half}"
    return cells
