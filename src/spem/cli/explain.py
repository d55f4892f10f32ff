"""`spem explain`: pictures of what a trained network looks at, and of its gates."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spem._messages import printable, say, unknown
from spem.cli.check import check_networks
from spem.cli.trained import Trained

if TYPE_CHECKING:
    from torch import Tensor

    from spem.explain import Cams
    from spem.explain.figures import Explained

_AT_ONCE = 16  # pictures
_TOP = 5

Method = Literal["gradcam", "hirescam", "gradcam++"]


def explain_pictures(
    trained: Trained,
    images: tuple[str, ...],
    *,
    method: Method = "gradcam",
    class_: str | None = None,
    layer: str | None = None,
    versus: Sequence[str] = (),
    gates: bool = False,
    check: bool = False,
    most: int = 500,
    out: str = "explained",
) -> int:
    """Show where a network finds what speaks for a class in pictures, and how its gates weigh.

    For each picture a figure with a class activation map over it and the five most probable
    classes, the numbers of the map beside it, and classes.csv with the probabilities. A picture
    that cannot be read is named at the end, and the exit code is 1.

    Args:
        trained: the network, and the data set whose test images --gates and --check take.
        images: picture files, and folders, which stand for all pictures in them and below.
        method: of the maps; gradcam weighs whole channels, hirescam each position.
        class_: name of the class to look for; if not given: the one that the network predicts.
        layer: name of the module whose feature map is looked at; if not given: the last one that
            gives a feature map.
        versus: runs or bundled networks that the same pictures are shown to, for the same class.
        gates: draw the multipliers of the gates over the test images of a data set: their mean for
            each channel and class, their histograms, and λ where gates learn it.
        check: instead of figures of pictures, a table that says whether the maps show what the
            answers depend on: insertion, deletion and shuffled weights, over the pictures, or
            without any over the test images of the data set.
        most: number of images that --check takes at most, drawn at random.
        out: folder for the figures.
    """
    networks = [trained, *map(trained.load_other, versus)]
    if not (images or gates or check):
        raise ValueError("images is empty: name pictures or folders, or give --gates or --check")
    if most < 1:
        raise ValueError(f"most is {most}, must be at least 1")
    _check_classes(networks, class_)
    if gates:
        _refuse_plain(networks)
    (folder := Path(out)).mkdir(parents=True, exist_ok=True)
    if gates:
        for network in networks:
            _draw_gates(network, folder, alone=len(networks) == 1)
    options: dict[str, Any] = {"method": method, "class_": class_, "layer": layer}
    if check:
        return check_networks(networks, images, folder, most, **options)
    return _explain_all(networks, images, folder, **options) if images else 0


def _refuse_plain(networks: Sequence[Trained]) -> None:
    """Raise ValueError where a network has no gates."""
    from spem.surgery.slots import find_gates

    for network in networks:
        if not any(find_gates(network.model)):
            raise ValueError(f"{network.name} has no gates to draw: leave out --gates")


def _draw_gates(network: Trained, folder: Path, alone: bool) -> None:
    """Write the figures of a network's gates into a folder, or one of its own below."""
    from spem.explain.gate_figures import write_gate_figures
    from spem.explain.profile import profile_gates
    from spem.gates.pooling import mixing_ratios

    dataset = network.load_data()
    try:
        batches = network.batches(dataset.test).in_order()
        profiles = profile_gates(network.model, batches, len(dataset.classes))
    except ValueError as error:
        raise ValueError(f"{network.name}: {error}") from error
    place = folder if alone else folder / network.name.strip("./").replace("/", "-")
    place.mkdir(exist_ok=True)
    title = f"{network.name} on {dataset.name}, {len(dataset.test.labels):,} test images"
    mixing = mixing_ratios(network.model)
    names = write_gate_figures(place, profiles, mixing, dataset.classes, title)
    say(f"{', '.join(names)}: in {place}")


def _explain_all(
    networks: Sequence[Trained],
    images: Sequence[str],
    folder: Path,
    method: str,
    class_: str | None,
    layer: str | None,
) -> int:
    """Write the figures and the table of pictures; return 1 where one could not be read."""
    from spem._files import write_table
    from spem.explain.figures import draw_explanation
    from spem.train.prediction import list_pictures

    pictures = list_pictures(images)
    names, rows, unreadable = _name_files(pictures), [], []
    for start in range(0, len(pictures), _AT_ONCE):
        files = pictures[start : start + _AT_ONCE]
        read, found, sentences = _explain_files(networks, files, method, class_, layer)
        unreadable += sentences
        for file, own in zip(read, found, strict=True):
            draw_explanation(folder / f"{names[file]}.png", file.name, own)
            rows += _rank(file, own)
    if rows:
        write_table(folder / "classes.csv", rows)
        say(f"{len(pictures) - len(unreadable):,} pictures, classes.csv: in {folder}")
    for sentence in unreadable:
        print(printable(f"spem: not explained: {sentence}"), file=sys.stderr)
    return int(bool(unreadable))


def _check_classes(networks: Sequence[Trained], class_: str | None) -> None:
    """Raise ValueError where networks know other classes, or none of the wanted name."""
    classes = networks[0].config["classes"]
    for other in networks[1:]:
        if other.config["classes"] != classes:
            raise ValueError(f"{other.name} knows other classes than {networks[0].name}")
    if class_ is not None and class_ not in classes:
        raise unknown("class", class_, classes)


def _name_files(pictures: Sequence[Path]) -> dict[Path, str]:
    """Return a name for the figure of each picture: its own, numbered where several have it."""
    names: dict[Path, str] = {}
    taken = set()
    for picture in pictures:
        name, number = picture.stem, 2
        while name.lower() in taken:
            name, number = f"{picture.stem}-{number}", number + 1
        taken.add(name.lower())
        names[picture] = name
    return names


def _explain_files(
    networks: Sequence[Trained],
    files: Sequence[Path],
    method: str,
    class_: str | None,
    layer: str | None,
) -> tuple[list[Path], "Iterator[tuple[Explained, ...]]", list[str]]:
    """Return the files that can be read, what each network finds in them, and what is unreadable.

    All networks look for the same class: that of the first, unless one is named.
    """
    from spem.data.batches import normalise
    from spem.explain import compute_cams
    from spem.train.prediction import read_pictures

    found, labels, names = [], None, networks[0].config["classes"]
    if class_ is not None:
        labels = names.index(class_)
    read, sentences = [], []
    for each in networks:
        read, pictures, sentences = read_pictures(files, each.config)
        if not read:
            break
        images = normalise(pictures.to(each.device), each.config["mean"], each.config["std"])
        cams = compute_cams(each.model, images, method=method, classes=labels, layer=layer)
        labels = cams.classes
        found.append(_describe(each.name, pictures, cams, names))
    return read, zip(*found, strict=True), sentences


def _describe(run: str, pictures: "Tensor", cams: "Cams", names: list[str]) -> "list[Explained]":
    """Return what a network finds in each picture of a batch."""
    from spem.explain.figures import Explained

    probabilities = cams.logits.softmax(1).cpu()
    best = probabilities.topk(min(_TOP, len(names)))
    found = []
    for row, label in enumerate(cams.classes.tolist()):
        top = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
        own = [(names[n], p) for n, p in top]
        sure = probabilities[row, label].item()
        found.append(Explained(run, pictures[row], cams.maps[row].cpu(), names[label], sure, own))
    return found


def _rank(file: Path, found: "Sequence[Explained]") -> list[dict[str, Any]]:
    return [
        {"picture": str(file), "network": each.network, "rank": rank, "class": name}
        | {"probability": f"{probability:.7g}"}
        for each in found
        for rank, (name, probability) in enumerate(each.top, 1)
    ]
