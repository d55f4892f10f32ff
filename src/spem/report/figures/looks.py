"""What the figures of a comparison share: style, colours, labels, legends and frames."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import Any

from spem._extras import needs_extra
from spem._messages import printable
from spem.compare.records import Record
from spem.report.figures.svg import PALETTE
from spem.report.significance import Summary
from spem.report.tables import Group

with needs_extra("report"):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

SERIES = [light for name, (light, _) in PALETTE.items() if name.startswith("series")]
OTHERS, GRID, INK = (PALETTE[name][0] for name in ("others", "grid", "ink"))
_MARKERS = "osD^vPX*"
# Inches: 360 units, so that text of 10 units is as many pixels high on a phone.
_WIDTH = 5.0
_ZOOM_FROM = 12  # epochs, of which the last quarter is drawn again
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a label with two dollar signs is a label
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """Let figures that are made and saved inside have the style of a report."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # Text stays text: the reader's fonts show the letters that matplotlib's lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def new_figure(height: float, grid: Sequence[Sequence[int]] = ((0,),)) -> tuple[Figure, list[Axes]]:
    """Return a figure of the common width and its panels.

    Args:
        height: in inches.
        grid: numbers of the panels in rows and columns; one that stands twice has both places.
    """
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, list(figure.subplot_mosaic([list(line) for line in grid]).values())


def count_epochs(group: Group) -> int:
    """Return the epochs of the longest run."""
    return max(len(each["history"]["epoch"]) for own in group.rows.values() for each in own)


def is_long(group: Group) -> bool:
    """Return whether the last quarter of the epochs is drawn once more."""
    return count_epochs(group) >= _ZOOM_FROM


def height(group: Group) -> float:
    """Return the height of a group's figures in inches.

    They stand side by side: figures of several heights would leave holes between them.
    """
    return 4.8 if is_long(group) else 3.8


def baselines(group: Group) -> list[str]:
    """Return the rows with which others are compared."""
    named = {record["against"] for records in group.rows.values() for record in records}
    return [row for row in group.rows if row in named]


def colours(group: Group) -> dict[str, str]:
    """Return the colour of each row.

    Of many rows those of the study's own method have one, the baselines and the best; the others
    are grey.
    """
    first = [baselines(group)[: len(SERIES) // 2], group.own]
    ranked = sorted(
        group.rows,
        key=lambda row: (*(row not in rows for rows in first), -group.accuracy[row].mean),
    )
    picked = set(ranked[: len(SERIES)])
    own = iter(SERIES)
    return {row: next(own) if row in picked else OTHERS for row in group.rows}


def markers(group: Group) -> dict[str, str]:
    """Return the marker of each row, by which rows differ without colours, too."""
    own = iter(_MARKERS)
    return {row: "." if hue == OTHERS else next(own) for row, hue in colours(group).items()}


def explain_grey(by_row: Mapping[str, str]) -> str:
    """Return the sentence that explains the grey rows; "" if there are none."""
    grey = list(by_row.values()).count(OTHERS)
    return f" Grey: the other {grey} rows, without bands." if grey else ""


def columns(records: Sequence[Record], key: str) -> np.ndarray:
    """Return a column of the histories of several seeds, (seeds, epochs) in float64.

    A run that stopped early keeps its last value.
    """
    found = [record["history"][key] for record in records]
    longest = max(map(len, found))
    return np.array([v + v[-1:] * (longest - len(v)) for v in found], dtype=float)


def label(row: str) -> str:
    """Return the name of a row in lines of a length that leaves room for a drawing."""
    return "\n".join(wrap(printable(row), 24, max_lines=3, placeholder=" …")) or row


def error_bars(summary: Summary) -> list[list[float]] | None:
    """Return the two arms of the interval of a mean; None without one."""
    if summary.low is None or summary.high is None:
        return None
    return [[summary.mean - summary.low], [summary.high - summary.mean]]


def frame(group: Group, set_limits: Callable[[float, float], Any]) -> str:
    """Set the limits of an axis to the accuracies of all seeds, and a part of the intervals.

    Two seeds can have an interval of half the axis, which would hide everything else.

    Returns:
        The sentence that explains intervals cut off by the frame; "" if there are none.
    """
    records = [record for own in group.rows.values() for record in own]
    seeds = [100 * record["summary"]["final_test_top1"] for record in records]
    ends = [end for each in group.accuracy.values() for end in (each.low, each.high) if end]
    spread = max(max(seeds) - min(seeds), 0.2)
    low, high = min([*seeds, *ends]), max([*seeds, *ends])
    lowest, highest = max(low, min(seeds) - spread), min(high, max(seeds) + spread)
    margin = max(spread / 20, (0.2 - (highest - lowest)) / 2)  # all may have one accuracy
    set_limits(lowest - margin, highest + margin)
    wider = low < lowest or high > highest
    return " An interval without an end goes on beyond the frame." if wider else ""


def plot_mean(
    axes: Axes, places: Sequence[int] | np.ndarray, seeds: np.ndarray, hue: str, **style: Any
) -> Line2D:
    """Plot the mean over the seeds, in a band from the lowest seed to the highest.

    Grey rows are thin and behind the others; they and single seeds have no band.

    Args:
        axes: to draw in.
        places: along the axis.
        seeds: values, (seeds, places).
        hue: colour.
        style: of the line, see `Axes.plot`.
    """
    style |= {"linewidth": 0.6, "zorder": 2} if hue == OTHERS else {"zorder": 3}
    (line,) = axes.plot(places, seeds.mean(0), color=hue, **style)
    if len(seeds) > 1 and hue != OTHERS:
        axes.fill_between(places, seeds.min(0), seeds.max(0), color=hue, alpha=0.12, linewidth=0)
    return line


def tick_whole_numbers(axes: Axes, most: int = 6) -> None:
    """Let the horizontal axis have ticks at whole numbers only, `most` + 1 of them."""
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def add_legend(figure: Figure, handles: Mapping[str, Any], by_row: Mapping[str, str]) -> None:
    """Name what is coloured below the axes.

    Args:
        figure: what the legend is for.
        handles: drawn things by name.
        by_row: their colours.
    """
    shown = {name: handle for name, handle in handles.items() if by_row.get(name) != OTHERS}
    names = [label(name) for name in shown]
    if len(shown) < len(handles):
        names.append(f"{len(handles) - len(shown)} others")
        shown[""] = Line2D([], [], color=OTHERS)
    longest = max(len(line) for name in names for line in name.split("\n"))
    count = min(len(names), max(1, 50 // (longest + 6)))
    figure.legend(list(shown.values()), names, loc="outside lower center", ncols=count)
