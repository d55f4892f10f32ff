"""What a trained network says of picture files, batch by batch."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_module, check_paths, check_switch, check_whole
from spem._files import atomically, open_table
from spem._messages import shorten
from spem.data.batches import normalise
from spem.data.images import ImageForm, find_images, prepare_image

# What `predict` reads of a `config.json`.
_NEEDED = {"classes", "image_size", "in_channels", "mean", "std"}
Kind = Literal["probability", "logit", "feature"]


class Predictions(NamedTuple):
    """What a network says of a batch of pictures.

    Attributes:
        pictures: the files that could be read.
        logits: (N, classes), on the CPU.
        features: what the last linear layer gets, (N, features), on the CPU; None if not asked for.
        unreadable: one sentence for each file that could not be read.
    """

    pictures: list[Path]
    logits: Tensor
    features: Tensor | None
    unreadable: list[str]


def list_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """Return the given files, and in place of a folder all picture files below it, sorted.

    Raises:
        ValueError: a folder holds no picture, or a path is none.
    """
    return [
        file
        for path in check_paths("paths", paths)
        for file in (find_images(path) if path.is_dir() else [path])
    ]


def predict(
    model: nn.Module,
    config: dict[str, Any],
    pictures: Sequence[Path],
    *,
    features: bool = False,
    batch_size: int = 64,
) -> Iterator[Predictions]:
    """Yield what a network says of pictures, in their order.

    Args:
        model: in eval mode, as `spem.export.load_network` returns it, on any device.
        config: returned with it.
        pictures: the files; those that cannot be read are named in the result.
        features: whether to keep what the last linear layer gets, too.
        batch_size: pictures that are read and computed at once.

    Raises:
        ValueError: `features` is true, and the network has no linear layer that gives the logits;
            or an argument is of another kind.
    """
    check_module(model)
    if not isinstance(config, Mapping) or not config.keys() >= _NEEDED:
        needed = ", ".join(sorted(_NEEDED))
        raise ValueError(f"config is {shorten(config)}, must have {needed}")
    check_switch("features", features)
    check_whole("batch_size", batch_size)
    pictures = check_paths("pictures", pictures)
    classes = len(config["classes"])
    classifier = find_classifier(model, classes) if features else None
    device = next(model.parameters()).device
    for start in range(0, len(pictures), batch_size):
        read, images, unreadable = read_pictures(pictures[start : start + batch_size], config)
        pixels = normalise(images.to(device), config["mean"], config["std"])
        with torch.inference_mode(), _inputs_of(classifier) as inputs:
            logits = model(pixels) if read else pixels.new_empty(0, classes)
        kept = None
        if classifier:
            kept = inputs[-1] if read else pixels.new_empty(0, classifier.in_features)
            kept = kept.float().cpu()
        yield Predictions(read, logits.float().cpu(), kept, unreadable)


def find_classifier(model: nn.Module, classes: int) -> nn.Linear:
    """Return the last linear layer of a network with as many outputs as there are classes.

    Raises:
        ValueError: there is none.
    """
    check_module(model)
    check_whole("classes", classes)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise ValueError(
            f"the classifier of this {type(model).__name__} cannot be found, for it has no linear"
            f" layer of {classes} outputs, one per class: leave out features"
        )
    return layers[-1]


def write_predictions(
    path: Path, batches: Iterable[Predictions], kind: Kind, classes: Sequence[str]
) -> tuple[int, list[str]]:
    """Write predictions as a CSV file, one row per picture.

    The columns are `picture`, `class` (the most probable one), and `probability.CLASS` or
    `logit.CLASS` for each class, or `feature.N` for each feature.

    Args:
        path: the file.
        batches: of `predict`.
        kind: the numbers that are written.
        classes: names by label.

    Returns:
        The number of rows, and one sentence for each file that could not be read.
    """
    count, unreadable = 0, []
    with atomically(path) as temporary, open_table(temporary) as file:
        table = csv.writer(file)
        for number, batch in enumerate(batches):
            values = _choose(batch, kind)
            if number == 0:
                names = range(values.shape[1]) if kind == "feature" else classes
                table.writerow(["picture", "class", *(f"{kind}.{name}" for name in names)])
            best = [classes[label] for label in batch.logits.argmax(1).tolist()]
            for picture, name, numbers in zip(batch.pictures, best, values.tolist(), strict=True):
                table.writerow([picture, name, *(f"{number:.7g}" for number in numbers)])
            count += len(batch.pictures)
            unreadable += batch.unreadable
    return count, unreadable


def rank(
    batches: Iterable[Predictions], classes: Sequence[str], top: int
) -> tuple[list[tuple[Path, str, float]], list[str]]:
    """Return the most probable classes of each picture, the most probable first.

    Args:
        batches: of `predict`.
        classes: names by label.
        top: number of classes of each picture, at most.

    Returns:
        Picture, class and probability, and one sentence for each file that could not be read.
    """
    rows, unreadable = [], []
    for batch in batches:
        best = batch.logits.softmax(1).topk(min(top, len(classes)))
        labels, probabilities = best.indices.tolist(), best.values.tolist()
        for picture, *ranked in zip(batch.pictures, labels, probabilities, strict=True):
            rows += [(picture, classes[n], p) for n, p in zip(*ranked, strict=True)]
        unreadable += batch.unreadable
    return rows, unreadable


def _choose(batch: Predictions, kind: Kind) -> Tensor:
    if kind == "feature":
        if batch.features is None:
            raise ValueError("the predictions were made without features")
        return batch.features
    return batch.logits if kind == "logit" else batch.logits.softmax(1)


def read_pictures(
    files: Sequence[Path], config: dict[str, Any]
) -> tuple[list[Path], Tensor, list[str]]:
    """Return the files that can be read, their images, and one sentence for each other file.

    Args:
        files: of pictures.
        config: of the network, which says what they are brought to.

    Returns:
        The files, uint8 (N, C, H, W), and the sentences.
    """
    resizing = (config.get(key) for key in ("interpolation", "crop_ratio"))
    form = ImageForm(config["image_size"], config["in_channels"], *resizing)
    read, images, unreadable = [], [], []
    for file in files:
        try:
            images.append(prepare_image(file, **form._asdict()))
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
        else:
            read.append(file)
    empty = torch.empty(0, form.channels, *form.sides, dtype=torch.uint8)
    return read, torch.stack(images) if images else empty, unreadable


@contextmanager
def _inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect what a layer, if there is one, gets while the block runs."""
    inputs: list[Tensor] = []
    if layer is None:
        yield inputs
        return
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        hook.remove()
