"""Figures of the gates of a network over a data set, each with its numbers in a CSV file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spem._extras import needs_extra
from spem._files import write_table
from spem.explain.figures import COLOURS, PALETTE, drawing, fit_text
from spem.explain.profile import BIN, GateProfile

with needs_extra("explain"):
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator, PercentFormatter

_PANELS = 9
_ROWS = 40  # gates whose names fit beside their rows
_BINS = 60
_MARGIN = 3


def write_gate_figures(
    folder: Path,
    profiles: Mapping[str, GateProfile],
    mixing: Mapping[str, float],
    classes: Sequence[str],
    title: str,
) -> list[str]:
    """Write the figures of gates, as PNG and CSV files of the same names.

    Args:
        folder: exists.
        profiles: of `profile_gates`.
        mixing: λ of the gates that have learned it, by name.
        classes: names by label.
        title: names the network and the data.

    Returns:
        The names of the PNG files.
    """
    names = ["gates.png", "histograms.png", *(["mixing.png"] if mixing else [])]
    _draw_classes(folder / names[0], profiles, classes, title)
    _draw_histograms(folder / names[1], profiles, title)
    if mixing:
        _draw_mixing(folder / names[2], mixing, title)
    return names


def _draw_classes(
    path: Path, profiles: Mapping[str, GateProfile], classes: Sequence[str], title: str
) -> None:
    """Draw the mean multiplier of each channel for some classes, and its spread over all images.

    As figure 6 of Hu et al., "Squeeze-and-Excitation Networks" (CVPR 2018). Of many gates, nine are
    drawn, evenly over the depth; of many classes the first five that have images.
    """
    shown = _choose_evenly([*profiles], _PANELS)
    seen = next(iter(profiles.values())).by_class.isfinite().all(1).nonzero()[:, 0]
    seen = seen[: len(PALETTE)].tolist()
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with drawing(path, 3.6 * columns, 2.3 * rows + 0.9) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        lines = []
        for axes, name in zip(panels.flat, shown, strict=False):
            lines = _draw_means(axes, profiles[name], seen)
            axes.set(title=fit_text(name), xlabel="channel")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in panels.flat[len(shown) :]:
            axes.set_axis_off()
        figure.supylabel("mean multiplier", fontsize=9)
        figure.suptitle(fit_text(title, 45 * columns), fontsize=10)
        named = ["all images ± std", *(fit_text(classes[int(label)], 24) for label in seen)]
        figure.legend(lines, named, loc="outside lower center", ncols=min(3, 2 * columns))
    write_table(path.with_suffix(".csv"), _list_means(profiles, classes))


def _draw_means(axes: Axes, profile: GateProfile, labels: Sequence[int]) -> list[Artist]:
    """Draw the spread over all images, and a line for each class; return what the legend names."""
    low, high = (profile.mean + k * profile.std for k in (-1, 1))
    channels = range(len(profile.mean))
    drawn: list[Artist] = [
        axes.fill_between(channels, low.numpy(), high.numpy(), color="#cccccc", linewidth=0)
    ]
    for label, colour in zip(labels, PALETTE, strict=False):
        drawn += axes.plot(channels, profile.by_class[label].numpy(), color=colour, linewidth=0.9)
    return drawn


def _list_means(
    profiles: Mapping[str, GateProfile], classes: Sequence[str]
) -> list[dict[str, object]]:
    """Return a row for each gate, class and channel, and one for all images with their spread."""

    def rows(gate: str, name: str, mean: Tensor, std: Tensor | None) -> list[dict[str, object]]:
        spread = [""] * len(mean) if std is None else [f"{value:.7g}" for value in std.tolist()]
        return [
            {"gate": gate, "class": name, "channel": n, "mean": f"{mean[n]:.7g}", "std": spread[n]}
            for n in range(len(mean))
        ]

    return [
        row
        for gate, profile in profiles.items()
        for row in [
            *rows(gate, "all", profile.mean, profile.std),
            *(
                row
                for name, mean in zip(classes, profile.by_class, strict=True)
                if mean.isfinite().all()
                for row in rows(gate, name, mean, None)
            ),
        ]
    ]


def _draw_histograms(path: Path, profiles: Mapping[str, GateProfile], title: str) -> None:
    """Draw the histogram of the multipliers of each gate as a row of colours, over the depth."""
    shares, edges = _merge_bins(profiles)
    with drawing(path, 6.5, max(2.4, 0.22 * min(len(profiles), _ROWS) + 1.2)) as figure:
        axes = figure.subplots()
        # A root shows shares of a few per cent.
        norm = PowerNorm(0.5, 0, float(shares.max()))
        extent = (edges[0], edges[-1], len(shares), 0)
        mesh = axes.imshow(shares.numpy(), COLOURS, norm=norm, aspect="auto", extent=extent)
        _name_rows(axes, [*profiles])
        axes.set(xlabel="multiplier", title=fit_text(title, 80))
        percent = PercentFormatter(1)
        figure.colorbar(mesh, label="share of the gate's multipliers", format=percent)
    rows = [
        {"gate": name, "from": f"{low:.7g}", "to": f"{high:.7g}", "share": f"{share:.7g}"}
        for name, row in zip(profiles, shares.tolist(), strict=True)
        for low, high, share in zip(edges[:-1], edges[1:], row, strict=True)
    ]
    write_table(path.with_suffix(".csv"), rows)


def _merge_bins(profiles: Mapping[str, GateProfile]) -> tuple[Tensor, list[float]]:
    """Return the share of each gate's multipliers in at most 60 bins, and the bins' edges."""
    # A margin of some bins, for gates that are constant.
    low = min(min(profile.counts) for profile in profiles.values()) - _MARGIN
    high = max(max(profile.counts) for profile in profiles.values()) + _MARGIN + 1
    step = -(-(high - low) // _BINS)
    bins = -(-(high - low) // step)
    shares = torch.zeros(len(profiles), bins, dtype=torch.float64)
    for row, profile in zip(shares, profiles.values(), strict=True):
        for key, count in profile.counts.items():
            row[(key - low) // step] += count
    return shares / shares.sum(1, keepdim=True), [(low + n * step) * BIN for n in range(bins + 1)]


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= _ROWS:
        axes.set_yticks([n + 0.5 for n in range(len(names))], [fit_text(name) for name in names])
        axes.tick_params(axis="y", labelsize=8)
    else:
        axes.set_ylabel("gate, from the first to the last")


def _draw_mixing(path: Path, mixing: Mapping[str, float], title: str) -> None:
    """Draw λ, the share of the maximum in what a gate pools, over the depth."""
    with drawing(path, 6.5, 3.4) as figure:
        axes, places = figure.subplots(), range(1, len(mixing) + 1)
        axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle="--")
        axes.plot(places, [*mixing.values()], "o-", color=PALETTE[0], linewidth=1)
        axes.set(ylim=(-0.03, 1.03), title=fit_text(title, 80))
        axes.set(xlabel="gate, from the first to the last", ylabel="λ: 1 maximum, 0 minimum")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows = [{"gate": name, "mixing": f"{value:.7g}"} for name, value in mixing.items()]
    write_table(path.with_suffix(".csv"), rows)


def _choose_evenly(names: list[str], most: int) -> list[str]:
    """Return at most so many names, evenly over the list, the first and the last among them."""
    if len(names) <= most:
        return names
    return [names[round(n * (len(names) - 1) / (most - 1))] for n in range(most)]
