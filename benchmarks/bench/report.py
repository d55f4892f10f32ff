"""What is printed and drawn of the results."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench.cases import GROUPS, NETWORK_GROUPS, Case
from benchmarks.bench.table import RUN, Row, read_rows
from benchmarks.bench.targets import verdicts
from spem._files import atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the SPEM paper trains on CIFAR.
_PUBLISHED, _EPOCHS, _IMAGES = "resnet164", 164, 50_000
_MARKS = {
    ("operations", "pool"): "o",
    ("operations", "pool backward"): "s",
    ("operations", "recalibrate"): "^",
    ("operations", "recalibrate backward"): "v",
    ("tail", "forward"): "D",
    ("tail", "forward and backward"): "P",
}
_COLORS = {
    "plain": "0.45",
    "ours": "C0",
    "ours, eager": "C1",
    "today": "C3",
    "timm": "C2",
    "compiled whole": "C4",
}


def line(case: Case, row: dict[str, object]) -> str:
    """Describe one measurement on one line."""
    if row["state"] != "ok":
        return f"{case}: {row['state']}"
    return (
        f"{case}: {float(str(row['seconds'])) * 1e3:.4g} ms, {row['ratio_50']:.3f} of"
        f" {row['baseline']} (10 to 90 %: {row['ratio_10']:.3f} to {row['ratio_90']:.3f};"
        f" its twin {row['noise_50']:.3f})"
    )


def markdown(rows: Iterable[Row]) -> str:
    """Return the tables of the results as Markdown: the targets first, then every case."""
    ordered = sorted(rows, key=_run)
    return "\n".join(_section(run, list(own)) for run, own in groupby(ordered, key=_run))


def _run(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in RUN)


def _section(run: tuple[str, ...], rows: list[Row]) -> str:
    device, _, torch, spem, threads = run
    parts = [f"## {device}\n\ntorch {torch}, spem {spem}, {threads} threads\n"]
    if targets := verdicts(rows):
        parts.append(f"### Targets\n\n{_targets(targets)}")
    for group in GROUPS:
        if own := [row for row in rows if row["group"] == group]:
            parts.append(f"### {group.capitalize()}\n\n{_cases(own)}")
            if group == "training":
                parts.append(_epochs(own))
    return "\n".join(parts)


def _epochs(rows: list[Row]) -> str:
    """Say how long the published training takes at the best measured rate of SPEM."""
    best = {}
    for row in rows:
        if row["state"] == "ok" and (row["gate"], row["form"]) == ("spem", "ours"):
            key = row["subject"], row["format"], row["dtype"]
            best[key] = max(best.get(key, 0), _images_per_second(row))
    return "".join(
        f"At {rate:.0f} images/s, {_EPOCHS} epochs of {_IMAGES:,} images by {name} with SPEM"
        f" ({layout}, {dtype}) take {_EPOCHS * _IMAGES / rate / 60:.1f} minutes.\n"
        for (name, layout, dtype), rate in best.items()
        if name == _PUBLISHED
    )


def _images_per_second(row: Row) -> float:
    return int(row["shape"].partition("x")[0]) / float(row["seconds"])


def _targets(found: Sequence) -> str:
    header = ["target", "where", "format", "mode", "limit", "measured", "reached"]
    words = {True: "yes", False: "no", None: "not measured"}
    cells = [
        [
            v.title,
            v.subject,
            v.format,
            v.mode,
            f"{'≥' if v.at_least else '≤'} {v.limit:.2f}",
            "" if v.measured is None else f"{v.measured:.3f}",
            words[v.reached],
        ]
        for v in found
    ]
    return _table(header, cells)


def _cases(rows: list[Row]) -> str:
    header = ["", "shape", "dtype", "format", "gate", "form", "way"]
    header += ["ms", "ratio", "10 % to 90 %", "twin", "memory, MiB"]
    header.append("images/s" if rows[0]["group"] in NETWORK_GROUPS else "share of the copy's")
    return _table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    cells = [row[key] for key in ("subject", "shape", "dtype", "format", "gate", "form", "way")]
    if row["state"] != "ok":
        return [*cells, row["state"], *[""] * 5]
    spread = f"{_number(row, 'ratio_10')} to {_number(row, 'ratio_90')}"
    memory = f"{int(row['memory']) / 2**20:.0f}" if row["memory"] else ""
    rate = f"{float(row['copy_share']):.0%}" if row["copy_share"] else ""
    if row["group"] in NETWORK_GROUPS:
        rate = f"{_images_per_second(row):.0f}"
    milliseconds = f"{float(row['seconds']) * 1e3:.4g}"
    return [
        *(*cells, milliseconds, f"{_number(row, 'ratio_50')} of {row['baseline']}", spread),
        *(_number(row, "noise_50"), memory, rate),
    ]


def _number(row: Row, column: str) -> str:
    return f"{float(row[column]):.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(path: Path) -> Path:
    """Draw the bandwidth that each operation reaches, beside a file of results.

    Args:
        path: the CSV file.

    Returns:
        The PNG file.

    Raises:
        ValueError: no operation and no tail is in it.
    """
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(path) if row["state"] == "ok" and row["copy_share"]]
    if not rows:
        raise ValueError(f"{path} holds no operations and no tails to draw")
    panels = sorted({(row["device"], row["dtype"], row["format"]) for row in rows})
    figure = Figure(figsize=(10, 3.6 * -(-len(panels) // 2) + 0.8), dpi=150, layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False, sharey=True).flatten()
    for panel, place in zip(panels, axes, strict=False):
        own = [row for row in rows if (row["device"], row["dtype"], row["format"]) == panel]
        _draw_panel(place, own)
        place.set_title(", ".join(panel), fontsize=9)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    figure.legend(*_legend(rows), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    picture = path.with_suffix(".png")
    with atomically(picture) as temporary:
        figure.savefig(temporary, format="png")
    return picture


def _draw_panel(axes: "Axes", rows: list[Row]) -> None:
    axes.set(xscale="log", xlabel="bytes that must move, MiB", ylabel="share of a copy's bandwidth")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.axhline(1, color="black", linewidth=1)
    axes.text(0.01, 1.01, "copy of the map", fontsize=7, transform=axes.get_yaxis_transform())
    for row in rows:
        color = _COLORS[_column(row)]
        hollow = row["group"] == "tail" and row["gate"] == "none"
        axes.plot(
            int(row["moved"]) / 2**20,
            float(row["copy_share"]),
            _MARKS[row["group"], row["subject"]],
            color=color,
            markerfacecolor="none" if hollow else color,
            alpha=0.75,
        )


def _column(row: Row) -> str:
    if row["way"] == "whole":
        return "compiled whole"
    if row["form"] == "ours" and row["way"] == "eager":
        return "ours, eager"
    return "plain" if row["form"] == "torch" else row["form"]


def _legend(rows: list[Row]) -> tuple[list, list[str]]:
    from matplotlib.lines import Line2D

    marks = [key for key in _MARKS if any((r["group"], r["subject"]) == key for r in rows)]
    columns = [key for key in _COLORS if any(_column(row) == key for row in rows)]
    handles = [Line2D([], [], marker=_MARKS[key], color="black", linestyle="") for key in marks]
    names = [f"tail, {subject}" if group == "tail" else subject for group, subject in marks]
    if any(group == "tail" for group, _ in marks):
        handles.append(Line2D([], [], marker="D", color="black", linestyle="", fillstyle="none"))
        names.append("tail without a gate")
    handles += [Line2D([], [], color=_COLORS[key], linewidth=6) for key in columns]
    return handles, names + columns
