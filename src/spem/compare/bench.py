"""`spem bench`: what a gate costs in a network of yours, on your machine."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spem._files import write_table
from spem.compare.tables import show
from spem.train.keys import Device


def bench(
    *,
    model: str = "resnet20",
    gates: Sequence[str] = ("spem",),
    at: str = "residual",
    batch: int = 32,
    size: int = 32,
    channels_last: bool = True,
    device: Device = "auto",
    threads: int | None = None,
    rounds: int = 20,
    out: str | None = None,
) -> int:
    """Measure what gates cost in a network on this machine: size, speed and memory.

    Each gate is first checked: it must leave the network as it is when it starts as the identity,
    and the fast kernels must agree with the reference. Then the network without gates, the same
    once more, and the network with each gate take turns. × is a cost over that of the network
    without gates; for speeds the ratio of times, paired by round, with its
    quartiles; "none again" shows the noise of this machine.

    Args:
        model: a name like resnet20 or vgg16, or package.module:function, which is called without
            arguments and returns a network from images to logits.
        gates: names of gates, see spem gates.
        at: where they go, as in spem.attach: residual, stage, or a pattern like 'layer*.*.bn3'.
        batch: images of a batch.
        size: side of the images, in pixels.
        channels_last: keep feature maps in the NHWC memory format.
        device: auto, cpu, cuda or mps.
        threads: of the CPU; PyTorch's choice if not given.
        rounds: of the measurement, at least 2.
        out: CSV file for the results.
    """
    from spem.compare.gate_costs import measure_gates
    from spem.compare.timing import RedCaseError
    from spem.train.devices import keep_freed_memory

    if out is not None and not Path(out).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder for the file {out}")
    if out is not None and Path(out).is_dir():
        raise IsADirectoryError(f"{out} is a folder, must be a CSV file")
    keep_freed_memory()
    options: dict[str, Any] = {"batch": batch, "size": size, "channels_last": channels_last}
    options |= {"device": device, "threads": threads, "rounds": rounds, "tell": _tell}
    try:
        rows = measure_gates(model, gates, at, **options)
    except RedCaseError as error:
        sys.stderr.write(f"spem: wrong results, nothing was measured: {error}\n")
        return 1
    header = ["gate", "parameters", "MACs", "training,\nimages/s", "inference,\nimages/s"]
    show([*header, "memory of a\nstep, MiB"], (_format_row(row, rows[0]) for row in rows))
    if out is not None:
        labels = {"model": model, "at": at, "size": size, "channels_last": channels_last}
        write_table(Path(out), [labels | _flatten(row) for row in rows])
    return 0


def _tell(line: str) -> None:
    """Say on stderr what is going on, so that stdout holds the table alone."""
    sys.stderr.write(f"{line} …\n")


def _format_row(row: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    """Return the cells of a row: each cost, and how many times that of the plain network it is."""
    macs = f"{row['macs'] / 1e6:,.2f} M\n×{row['macs'] / plain['macs']:.3f}"
    parameters = f"{row['parameters']:,}\n×{row['parameters'] / plain['parameters']:.3f}"
    cells = [row["gate"], parameters, macs]
    for kind in ("train", "inference"):
        ratio = row[f"{kind}_ratio"]
        spread = f"{ratio['low']:.2f}–{ratio['high']:.2f}"
        cells.append(f"{row[kind]['median']:,.0f}\n×{ratio['median']:.3f}\n{spread}")
    if row["memory"] is None or not plain["memory"]:
        return [*cells, "-"]
    return [*cells, f"{row['memory'] / 2**20:,.1f}\n×{row['memory'] / plain['memory']:.3f}"]


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of `measure_gates` as one of a CSV file: `train`, `train_low`, `train_high`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        parts = value if isinstance(value, dict) else {"median": value}
        flat |= {key if part == "median" else f"{key}_{part}": parts[part] for part in parts}
    return flat
