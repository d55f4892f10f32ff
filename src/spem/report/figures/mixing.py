"""Mixing ratios λ, the share of the maximum, that gates have learned."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from spem._extras import needs_extra
from spem.report.figures import looks
from spem.report.figures.looks import OTHERS, SERIES
from spem.report.figures.svg import Drawing
from spem.report.tables import Group

with needs_extra("report"):
    import numpy as np
    from matplotlib.axes import Axes

_PREFIX = "mixing."
_LABEL = "λ, share of the maximum"
_LIMITS = (-0.04, 1.04)
_PANELS = 4
_STAGES = 6
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))  # one a stage
_STILL = 0.01  # λ that differs by less does not differ


# Panels of 1 to 4 rows: the last one of three has the whole width.
_GRIDS = {1: [[0]], 2: [[0], [1]], 3: [[0, 1], [2, 2]], 4: [[0, 1], [2, 3]]}


def _learned(group: Group) -> dict[str, dict[str, np.ndarray]]:
    """Return λ by row and gate, (seeds, epochs) each; rows that learn none are left out."""
    found = {}
    for row, records in group.rows.items():
        names = [name for name in records[0]["history"] if name.startswith(_PREFIX)]
        if names:
            found[row] = {n.removeprefix(_PREFIX): looks.columns(records, n) for n in names}
    return found


def stages(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the gates of each stage of a network.

    Args:
        names: of the gates, in order of depth.

    Returns:
        By the first parts of the names if these name a few stages, else equal parts.
    """
    for length in (1, 2):
        found: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            found.setdefault(".".join(name.split(".")[:length]), []).append(place)
        if 1 < len(found) <= _STAGES:
            return found
    parts = np.array_split(1 + np.arange(len(names)), min(4, len(names)))
    return {
        f"gates {part[0]}–{part[-1]}" if len(part) > 1 else f"gate {part[0]}": (part - 1).tolist()
        for part in parts
    }


def _list_gates(learned: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Return the names of all gates, in the order of depth of the row that has most."""
    return list(dict.fromkeys(chain(max(learned.values(), key=len), *learned.values())))


def draw_depth(group: Group) -> Drawing | None:
    """Draw the final λ of each gate over depth; None where all gates have the same."""
    learned = _learned(group)
    finals = [values[:, -1].mean() for gates in learned.values() for values in gates.values()]
    if not finals or np.ptp(finals) < _STILL:
        return None
    names = _list_gates(learned)
    figure, (axes,) = looks.new_figure(looks.height(group))
    colours, markers, handles = looks.colours(group), looks.markers(group), {}
    for row, gates in learned.items():
        final = np.array([values[:, -1] for values in gates.values()]).T
        depth = [names.index(name) + 1 for name in gates]
        style = {"linewidth": 1, "marker": markers[row], "markersize": 4}
        handles[row] = looks.plot_mean(axes, depth, final, colours[row], **style)
    _mark_stages(axes, names)
    looks.add_legend(figure, handles, colours)
    word = group.repeats.word
    caption = f"After the last epoch: mean over the {word}s; bands from the lowest"
    caption += f" {word} to the highest."
    own = {row: colours[row] for row in learned}
    title = "Learned mixing ratios over depth"
    return Drawing("depth", title, caption + looks.explain_grey(own), figure)


def _mark_stages(axes: Axes, names: Sequence[str]) -> None:
    for stage, places in stages(names).items():
        if places[0]:
            axes.axvline(places[0] + 0.5, color=OTHERS, linewidth=0.8, linestyle=":")
        middle = (places[0] + places[-1]) / 2 + 1
        axes.annotate(stage, (middle, 1.06), ha="center", fontsize=9, annotation_clip=False)
    axes.set(xlabel="gate, in order of depth", ylabel=_LABEL, ylim=_LIMITS)
    axes.set_xlim(0.5, len(names) + 0.5)
    looks.tick_whole_numbers(axes, 9)


def draw_epochs(group: Group) -> Drawing | None:
    """Draw λ over the epochs, the gates of a stage in one colour; None where no gate moves."""
    learned, colours = _learned(group), looks.colours(group)
    means = [values.mean(0) for gates in learned.values() for values in gates.values()]
    if not means or max(map(np.ptp, means)) < _STILL:
        return None
    shown = sorted(learned, key=lambda row: colours[row] == OTHERS)[:_PANELS]
    figure, panels = looks.new_figure(looks.height(group), _GRIDS[len(shown)])
    handles = {}
    for axes, row in zip(panels, shown, strict=True):
        handles |= _plot_epochs(axes, learned[row], _list_gates(learned))
        axes.set_title(looks.label(row), fontsize=10)
    panels[-1].set_xlabel("epoch")
    figure.supylabel(_LABEL, fontsize=10)
    looks.add_legend(figure, handles, {})
    caption = (
        f"Thin: one gate, mean over the {group.repeats.word}s. Thick: mean of the gates of a stage."
    )
    if len(shown) < len(learned):
        caption += f" Drawn are {len(shown)} of the {len(learned)} rows that learn λ."
    return Drawing("epochs", "Learned mixing ratios over the epochs", caption, figure)


def _plot_epochs(axes: Axes, gates: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    handles = {}
    for colour, line, (stage, places) in zip(SERIES, _LINES, stages(names).items(), strict=False):
        own = [gates[names[place]].mean(0) for place in places if names[place] in gates]
        if own:
            epochs = 1 + np.arange(len(own[0]))
            marker = "." if len(epochs) == 1 else ""
            axes.plot(epochs, np.transpose(own), color=colour, linewidth=0.6, alpha=0.6)
            style = {"color": colour, "marker": marker, "linewidth": 2, "linestyle": line}
            (handles[stage],) = axes.plot(epochs, np.mean(own, 0), **style)
    axes.set_ylim(*_LIMITS)
    looks.tick_whole_numbers(axes)
    return handles
