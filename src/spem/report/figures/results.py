"""Accuracy: against cost, over the epochs, and of each seed or fold."""

from spem._extras import needs_extra
from spem.report.figures import looks
from spem.report.figures.looks import OTHERS, SERIES
from spem.report.figures.svg import Drawing
from spem.report.tables import Group

with needs_extra("report"):
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_SAME_COST = 1.05  # sizes within this factor are as good as equal
_MARKED = 10  # about so many epochs of a curve have a marker


def draw_cost(group: Group) -> Drawing | None:
    """Draw accuracy against measured training time, or against what else the cost is.

    Returns:
        The drawing, or None where the costs of all rows are the same.
    """
    title, label, costs = _costs(group)
    middles = [middle for middle, *_ in costs.values()]
    if max(middles) < (1.001 if group.costs else _SAME_COST) * min(middles):
        return None
    figure, (axes,) = looks.new_figure(looks.height(group))
    colours, markers, handles = looks.colours(group), looks.markers(group), {}
    for row, (middle, low, high) in costs.items():
        summary, grey = group.accuracy[row], colours[row] == OTHERS
        handles[row] = axes.errorbar(
            middle,
            summary.mean,
            xerr=[[middle - low], [high - middle]],
            yerr=looks.error_bars(summary),
            fmt=markers[row],
            color=colours[row],
            elinewidth=0.6 if grey else 1,
            capsize=0 if grey else 2,
            zorder=2 if grey else 3,
        )
    cut = looks.frame(group, axes.set_ylim)
    axes.set(xlabel=label, ylabel="final test top-1, %")
    axes.locator_params("x", nbins=6)
    axes.ticklabel_format(useOffset=False)
    looks.add_legend(figure, handles, colours)
    caption = f"{title}. Upright bars: 95 % interval of the mean over the "
    caption += f"{group.repeats.word}s.{cut}"
    if missing := [row for row in group.rows if row not in costs]:
        caption += f" Not measured, so not drawn: {', '.join(missing)}."
    return Drawing("cost", "Accuracy against cost", caption, figure)


def _costs(group: Group) -> tuple[str, str, dict[str, tuple[float, float, float]]]:
    """Return what the cost is, the label of its axis, and by row the cost with its quartiles."""
    measured = {row: group.costs[row]["train_ratio"] for row in group.rows if row in group.costs}
    if measured:
        found = {row: (r["median"], r["low"], r["high"]) for row, r in measured.items()}
        first = next(iter(group.costs))
        title = "Measured time of a training step; bars along the axis: quartiles of the rounds"
        return title, f"training time, as a multiple of {first}", found
    first = {row: records[0]["summary"] for row, records in group.rows.items()}
    names = {"macs": "multiply-adds of an image", "parameters": "parameters"}
    sizes = {key: [summary[key] for summary in first.values()] for key in names}
    key = max(names, key=lambda key: max(sizes[key]) / min(sizes[key]))
    found = {row: (summary[key] / 1e6,) * 3 for row, summary in first.items()}
    title = f"No times were measured; drawn are {names[key]}, which differ most"
    return title, f"{names[key]}, millions", found


def draw_curves(group: Group) -> Drawing | None:
    """Draw test accuracy over the epochs, and the last of many once more; None of one epoch."""
    colours, longest, zoomed = looks.colours(group), looks.count_epochs(group), looks.is_long(group)
    if longest == 1:
        return None
    figure, panels = looks.new_figure(looks.height(group), [[0], [1]] if zoomed else [[0]])
    handles = _plot_curves(panels[0], group, 0)
    if zoomed:
        _plot_curves(panels[1], group, longest - longest // 4)
    panels[-1].set_xlabel("epoch")
    looks.add_legend(figure, handles, colours)
    caption = "Mean over the {0}s; bands from the lowest {0} to the highest."
    caption = caption.format(group.repeats.word)
    caption += " Below: the last quarter." if zoomed else ""
    if any(r["summary"].get("stopped_early") for own in group.rows.values() for r in own):
        caption += " A run that stopped early keeps its last value."
    return Drawing("curves", "Learning curves", caption + looks.explain_grey(colours), figure)


def _plot_curves(axes: Axes, group: Group, first: int) -> dict[str, Line2D]:
    colours, markers, handles = looks.colours(group), looks.markers(group), {}
    for row, records in group.rows.items():
        curves = 100 * looks.columns(records, "test_top1")[:, first:]
        epochs = first + 1 + np.arange(curves.shape[1])
        dashed = colours[row] in SERIES[len(SERIES) // 2 :]
        style = {"linestyle": "--" if dashed else "-", "linewidth": 1.2, "markersize": 4}
        style["marker"] = "" if colours[row] == OTHERS else markers[row]
        style["markevery"] = max(1, len(epochs) // _MARKED)
        handles[row] = looks.plot_mean(axes, epochs, curves, colours[row], **style)
    axes.set_ylabel("test top-1, %")
    looks.tick_whole_numbers(axes)
    return handles


def draw_seeds(group: Group) -> Drawing:
    """Draw the final accuracy of each seed or fold, one strip a row, with mean and interval."""
    labels, colours = [looks.label(row) for row in group.rows], looks.colours(group)
    heights = np.array([max(2, label.count("\n") + 1) for label in labels])
    places = np.cumsum(heights) - heights / 2
    figure, (axes,) = looks.new_figure(0.8 + 0.14 * heights.sum())
    for place, (row, records) in zip(places, group.rows.items(), strict=True):
        values = [100 * record["summary"]["final_test_top1"] for record in records]
        summary, colour = group.accuracy[row], colours[row]
        arms = looks.error_bars(summary)
        axes.plot(values, [place - 0.4] * len(values), "o", ms=4.5, mew=0, alpha=0.6, color=colour)
        axes.errorbar(summary.mean, place + 0.4, xerr=arms, fmt="d", ms=4, capsize=2, color=colour)
    for row in looks.baselines(group):
        axes.axvline(group.accuracy[row].mean, color=OTHERS, linewidth=0.8, linestyle=":")
    cut = looks.frame(group, axes.set_xlim)
    axes.set(xlabel="final test top-1, %", ylim=(heights.sum() + 0.4, -0.4))
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    word = group.repeats.word
    caption = f"Dots: one {word} each. Diamonds: their mean, with its 95 % interval."
    caption += " Dotted: means of the baselines."
    return Drawing(f"{word}s", f"{word.title()}s", caption + cut, figure)
