"""Figures of explanations, each a PNG file with its numbers in a CSV file beside it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from spem._extras import needs_extra
from spem._files import atomically, write_table
from spem._messages import printable
from spem.explain.checks import CamChecks

with needs_extra("explain"):
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

COLOURS = "viridis"
# Of Okabe and Ito, who chose them for the colour-blind.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
_STRENGTH = 0.6  # of the colours over the picture
_WIDTH = 2.7  # of a panel, in inches
_LETTERS = 34  # of a title, which fit above a panel


class Explained(NamedTuple):
    """What one network finds in one picture.

    Attributes:
        network: its name.
        picture: as the network sees it, uint8 (C, H, W).
        cam: the class activation map, (h, w), at least 0.
        label: the class of which the map speaks.
        top: the most probable classes with their probabilities, the most probable first.
        probability: of the class of which the map speaks.
    """

    network: str
    picture: Tensor
    cam: Tensor
    label: str
    probability: float
    top: Sequence[tuple[str, float]]


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of a size in inches, which is written as a PNG file after the block."""
    style: Any = {"font.size": 9, "text.parse_math": False, "axes.titlesize": 9}
    with rc_context(style):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        with atomically(path) as temporary:
            figure.savefig(temporary, format="png")


def fit_text(text: str, letters: int = _LETTERS) -> str:
    """Return a text in one line, with its middle left out where it has too many letters."""
    text = " ".join(printable(text).split())
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[-(letters - letters // 2 - 1) :]}"


def draw_explanation(path: Path, title: str, found: Sequence[Explained]) -> None:
    """Draw a picture, and beside it what each network finds in it, as an overlay with a colour bar.

    Below stand the most probable classes. The map's numbers, not enlarged, are written beside the
    PNG file as a CSV file.

    Args:
        path: the PNG file.
        title: of the picture.
        found: of each network.
    """
    columns = len(found) + 1
    with drawing(path, _WIDTH * columns + 0.8, _WIDTH + 2.0) as figure:
        panels = figure.subplots(2, columns, squeeze=False, height_ratios=(_WIDTH, 1.3))
        _show(panels[0, 0], _to_colours(found[0].picture), fit_text(title))
        panels[1, 0].set_axis_off()
        for (above, below), each in zip(panels.T[1:], found, strict=True):
            said = f"{fit_text(each.label, 24)} ({each.probability:.0%})"
            _show(above, overlay(each.picture, each.cam), f"{fit_text(each.network)}\n{said}")
            _list_classes(below, each)
        scale = ScalarMappable(cmap=COLOURS)
        scale.set_clim(0, 1)
        figure.colorbar(scale, ax=panels[0, -1], label="share of the map's largest value")
    write_table(
        path.with_suffix(".csv"),
        [
            {"network": each.network, "class": each.label, "row": row, "column": column}
            | {"value": f"{value:.7g}"}
            for each in found
            for row, line in enumerate(each.cam.tolist())
            for column, value in enumerate(line)
        ],
    )


def overlay(picture: Tensor, cam: Tensor) -> Tensor:
    """Return a grey picture under the colours of a class activation map.

    Args:
        picture: uint8 (C, H, W), with one channel or three.
        cam: (h, w), at least 0; it is enlarged bilinearly, and divided by its largest value.

    Returns:
        Red, green and blue in [0, 1], (H, W, 3).
    """
    large = interpolate(cam[None, None].float().cpu(), picture.shape[1:], mode="bilinear")[0, 0]
    share = large / large.max().clamp(min=torch.finfo(torch.float32).tiny)
    colours = torch.from_numpy(colormaps[COLOURS](share.numpy())[..., :3]).float()
    grey = _to_colours(picture).mean(2, keepdim=True)
    return _STRENGTH * colours + (1 - _STRENGTH) * grey


def _to_colours(picture: Tensor) -> Tensor:
    return (picture.cpu().float() / 255).expand(3, -1, -1).permute(1, 2, 0)


def _show(axes: Axes, colours: Tensor, title: str) -> None:
    axes.imshow(colours.numpy(), interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def _list_classes(axes: Axes, found: Explained) -> None:
    """Draw a bar for the probability of each class, with its name on it."""
    places = range(len(found.top))
    axes.barh(places, [p for _, p in found.top], color="#9ecae1", height=0.86)
    for place, (name, probability) in zip(places, found.top, strict=True):
        axes.text(0.02, place, fit_text(name, 24), va="center", fontsize=8)
        axes.text(0.99, place, f"{probability:.1%}", va="center", ha="right", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(4.6, -0.6))
    axes.set_axis_off()


def draw_curves(path: Path, checks: Mapping[str, CamChecks], title: str) -> None:
    """Draw the mean insertion and deletion curves of networks, and those with a random map.

    The numbers are written beside the PNG file as a CSV file.

    Args:
        path: the PNG file.
        checks: by the network's name.
        title: names the method.
    """
    rows = []
    with drawing(path, 7.2, 4.2 + 0.2 * len(checks)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, kind in zip(panels, ("deletion", "insertion"), strict=True):
            for number, (name, found) in enumerate(checks.items()):
                for order, style in (("", "-"), ("random_", ":")):
                    means = getattr(found, order + kind).double().mean(0).tolist()
                    shares = [n / (len(means) - 1) for n in range(len(means))]
                    label = None if order else fit_text(name)
                    colour = PALETTE[number % len(PALETTE)]
                    axes.plot(shares, means, style, color=colour, label=label)
                    rows += [
                        {"network": name, "curve": order + kind, "share": f"{x:g}"}
                        | {"probability": f"{y:.7g}"}
                        for x, y in zip(shares, means, strict=True)
                    ]
            done = "deleted" if kind == "deletion" else "inserted"
            axes.set(title=kind, xlabel=f"share of the pixels {done}", xlim=(0, 1), ylim=(0, 1))
        panels[0].plot([], [], ":", color="#666666", label="with a random map")
        panels[0].set_ylabel("mean probability of the class")
        figure.suptitle(fit_text(title, 80), fontsize=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    write_table(path.with_suffix(".csv"), rows)
