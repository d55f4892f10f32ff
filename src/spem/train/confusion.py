"""The confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spem._extras import needs_extra
from spem._files import atomically
from spem._messages import printable

with needs_extra("train"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

_LISTED = 10  # confusions that are named
_MOST_CLASSES = 100
_MOST_NUMBERS = 25  # classes up to which the shares are written into the cells


class Confusion(NamedTuple):
    """How often images of one class are taken for another one.

    Attributes:
        label, predicted: the two classes.
        count: number of such images.
        share: of all images of the class.
    """

    label: int
    predicted: int
    count: int
    share: float


def worst_confusions(labels: Tensor, predicted: Tensor, most: int) -> list[Confusion]:
    """Return the confusions with the largest share of their class's images, the worst first.

    Args:
        labels: of the images, (N,).
        predicted: their predicted classes, (N,).
        most: number of confusions at most.
    """
    pairs, counts = torch.stack([labels, predicted]).unique(dim=1, return_counts=True)
    shares = counts.double() / labels.bincount()[pairs[0]]
    wrong = (pairs[0] != pairs[1]).nonzero()[:, 0]
    order = wrong[shares[wrong].argsort(descending=True, stable=True)][:most].tolist()
    return [
        Confusion(int(pairs[0, n]), int(pairs[1, n]), int(counts[n]), float(shares[n]))
        for n in order
    ]


def draw_confusion(
    path: Path, labels: Tensor, predicted: Tensor, classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix, and name the worst confusions beside it.

    Hits are blue and mistakes orange, so that a few mistakes stand out. Of more than 100 classes,
    the 100 with the most mistakes are drawn.

    Args:
        path: the PNG file.
        labels: of the images, (N,).
        predicted: their predicted classes, (N,).
        classes: names by label.
        title: stands above the picture.
    """
    wrong = labels != predicted
    missed, taken = (v[wrong].bincount(minlength=len(classes)) for v in (labels, predicted))
    drawn = (missed + taken).argsort(descending=True, stable=True)[:_MOST_CLASSES].sort().values
    names = [_shorten(classes[row]) for row in map(int, drawn)]
    size = 9.0 if len(names) <= 38 else max(5.0, 340 / len(names))  # of letters, in points
    side = max(3.2, 1.25 * size / 72 * len(names))
    edge = 0.75 + 0.62 * size / 72 * max(map(len, names))  # of the names of the classes
    width, height = edge + side + 4.2, max(edge + side, 4.4) + 0.5
    # A class with two dollar signs in its name is no formula.
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=150)
        # A layout that matplotlib finds by itself takes half a minute for 100 classes.
        place = (edge / width, 1 - (0.5 + side) / height, side / width, side / height)
        _draw_matrix(
            figure.add_axes(place), _count_shares(labels, predicted, drawn).numpy(), names, size
        )
        figure.text(0.2 / width, 1 - 0.2 / height, printable(title), va="top", fontsize=11)
        left, top = (edge + side + 0.3) / width, 1 - 0.5 / height
        figure.text(left, top, _name_worst(labels, predicted, classes), va="top", fontsize=9)
        with atomically(path) as temporary:
            figure.savefig(temporary, format="png")


def _count_shares(labels: Tensor, predicted: Tensor, drawn: Tensor) -> Tensor:
    """Return the shares of the images of the drawn classes, by predicted class, in float64."""
    row, column = (
        torch.searchsorted(drawn, each).clamp(max=len(drawn) - 1) for each in (labels, predicted)
    )
    kept = (drawn[row] == labels) & (drawn[column] == predicted)
    matrix = torch.zeros(len(drawn), len(drawn), dtype=torch.float64)
    ones = torch.ones(int(kept.sum()), dtype=torch.float64)
    matrix.index_put_((row[kept], column[kept]), ones, accumulate=True)
    totals = labels.bincount(minlength=int(drawn[-1]) + 1)[drawn]
    return matrix / totals.clamp(min=1)[:, None]


def _shorten(name: str) -> str:
    """Return a name in one line of at most 24 letters."""
    name = " ".join(printable(name).split())
    return name if len(name) <= 24 else f"{name[:23]}…"


def _draw_matrix(axes: Axes, shares: np.ndarray, names: Sequence[str], size: float) -> None:
    hits = np.eye(len(names), dtype=bool)
    # The root makes shares of a few percent visible.
    for colours, hidden in (("Oranges", hits), ("Blues", ~hits)):
        values = np.ma.masked_where(hidden | (shares == 0), shares)
        axes.imshow(values, colours, norm=PowerNorm(0.5, 0, 1))
    places = range(len(names))
    axes.set_xticks(places, names, fontsize=size, rotation=90)
    axes.set_yticks(places, names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="class")
    if len(names) <= _MOST_NUMBERS:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            style = {"color": "white" if share > 0.4 else "black", "fontsize": size * 0.9}
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", **style)


def _name_worst(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> str:
    hits, images = int((labels == predicted).sum()), len(labels)
    lines = [f"{hits:,} of {images:,} images are classified correctly.", ""]
    worst, totals = worst_confusions(labels, predicted, _LISTED), labels.bincount()
    lines.append("Most often confused:" if worst else "No image is confused.")
    for each in worst:
        label, other = (_shorten(classes[n]) for n in (each.label, each.predicted))
        total = f"{each.count:,} of {int(totals[each.label]):,} ({each.share:.0%})"
        lines.append(f"{label} taken for {other}:\n    {total}")
    lines += ["", "Cells: percent of the images of a class;", "blue: correct, orange: wrong."]
    return "\n".join(lines)
