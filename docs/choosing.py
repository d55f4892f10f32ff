"""Write the tables of choosing-a-gate.md from the registry, the measured times and published.csv.

Run `python -m docs.choosing` at the root of the repository.
"""

import csv
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench.cases import ALL_GATES, IMAGENET, bench_network, gate_of
from benchmarks.bench.imagenet import SIZE, ImageNetResNet50
from benchmarks.bench.table import read_rows
from torch import nn
from torch.export import Dim

from spem.gates import GATES, Attention, Gate, create_gate, gate_options
from spem.train.setup import count_macs

PAGE = Path(__file__).with_name("choosing-a-gate.md")
RESULTS = PAGE.parents[1] / "benchmarks" / "results"
PROCESSORS = ("cpu", "cuda")
CHANNELS = 64
COSTS = """\
| gate | family | ResNet-50: parameters | MACs, M | ResNet-164: parameters | MACs, M \
| training, CPU | inference, CPU | training, GPU | inference, GPU |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
"""
NEEDS = """\
| gate | rides on BatchNorm's pass | needs the map | size of the map | batch | exports \
| deterministic |
|---|---|---|---|---|---|---|
"""
PUBLISHED = """\
| gate | data | network | measure | plain | with the gate | source | from |
|---|---|---|---|---:|---:|---|---|
"""


def _link(name: str) -> str:
    return f"[`{name}`](methods/{name}.md)"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _build(network: str, case: str | None) -> nn.Module:
    """Return a network with the gates where their authors put them."""
    if network == IMAGENET:
        return ImageNetResNet50(*gate_of(case), placement=None)
    return bench_network(network, case)


@cache
def _size(network: str, case: str | None) -> tuple[int, int]:
    """Return the parameters and the multiply-adds of a network."""
    model, side = _build(network, case), SIZE if network == IMAGENET else 32
    macs, _ = count_macs(model, torch.empty(1, 3, side, side))
    return sum(parameter.numel() for parameter in model.parameters()), macs


def _time(processor: str, group: str, case: str) -> str:
    """Return the time of a group over plain as it was measured; "" where it was not."""
    path = RESULTS / f"gates-{processor}.csv"
    rows = read_rows(path) if path.exists() else []
    found = [r for r in rows if (r["group"], r["gate"], r["form"]) == (group, case, "ours")]
    return f"×{float(found[-1]['ratio_50']):.2f}" if found and found[-1]["ratio_50"] else ""


def costs(case: str) -> str:
    """Return the line of a gate in the table of costs."""
    name, _ = gate_of(case)
    cells = [_link(str(name)), _create(case).family]
    for network in (IMAGENET, "resnet164"):
        (parameters, macs), (plain, least) = _size(network, case), _size(network, None)
        cells += [f"{parameters - plain:,}", f"{(macs - least) / 1e6:,.2f}"]
    times = [_time(p, group, case) for p in PROCESSORS for group in ("training", "inference")]
    return _line(*cells, *times)


def _create(case: str) -> Attention:
    name, options = gate_of(case)
    torch.manual_seed(0)
    gate = create_gate(str(name), CHANNELS, **options)
    for parameter in gate.parameters():  # the published start is often constant
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return gate


def _batch(case: str) -> str:
    """Say whether an image's result in training depends on the others of its batch."""
    x = torch.randn(4, CHANNELS, 6, 5)
    gate = _create(case).train()
    try:
        gate(x[:1])
    except ValueError:
        return "2 images or more in training"
    torch.manual_seed(1)
    first = _create(case).train()(x)[:1]
    other = _create(case).train()(torch.cat([x[:1], x[1:] + 1]))[:1]
    return "any" if torch.equal(first, other) else "any; statistics of the batch in training"


def _is_deterministic(case: str) -> str:
    """Say whether two training passes from one state give the same result."""
    gate, x = _create(case).train(), torch.randn(4, CHANNELS, 6, 5)
    return "yes" if torch.equal(gate(x), gate(x)) else "in evaluation; draws in training"


def _exports(case: str) -> str:
    """Say whether `torch.export` takes the gate, for maps of every size."""
    sizes = {0: Dim("n", max=64), 2: Dim("h", min=4, max=64), 3: Dim("w", min=4, max=64)}
    gate, x = _create(case), torch.randn(3, CHANNELS, 8, 9)
    found = []
    for training in (False, True):
        try:
            torch.export.export(gate.train(training), (x,), dynamic_shapes=(sizes,))
            found.append(True)
        except Exception:  # whatever the exporter raises
            found.append(False)
    return {(True, True): "yes", (True, False): "in evaluation"}.get(tuple(found), "no")


def needs(case: str) -> str:
    """Return the line of a gate in the table of what it needs."""
    gate = _create(case)
    rides = isinstance(gate, Gate) and gate.reads_statistics_only
    name = str(gate_of(case)[0])
    size = "any; one with `map_size`" if "map_size" in gate_options(name) else "any"
    answers = ("yes", "no") if rides else ("no", "yes")
    return _line(_link(name), *answers, size, _batch(case), _exports(case), _is_deterministic(case))


def published() -> str:
    """Return the lines of published accuracies, in the order of the registry."""
    with PAGE.with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    lines = []
    for name in GATES:
        own = [row for row in rows if row["gate"] == name]
        cells = [[_link(name), *(row[key] or "–" for key in [*row][1:])] for row in own]
        lines += [_line(*line) for line in cells] or [_line(_link(name), *["–"] * 5, "none", "–")]
    return "".join(lines)


def conditions() -> str:
    """Return where the times were measured."""
    lines = []
    for processor in PROCESSORS:
        path = RESULTS / f"gates-{processor}.csv"
        if not path.exists():
            lines.append(f"* {processor.upper()}: not measured yet.\n")
            continue
        row = next(r for r in read_rows(path) if r["gate"] == "none" and r["ratio_50"])
        lines.append(
            f"* {processor.upper()}: {row['device']}, {row['threads']} threads, torch"
            f" {row['torch']}, {row['subject']}, images {row['shape']}, {row['dtype']},"
            f" {row['format']}, n = {row['pairs']} pairs in turns; plain beside plain"
            f" ×{float(row['noise_10']):.2f} to ×{float(row['noise_90']):.2f} (10 to 90 %).\n"
        )
    return "".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "costs": lambda: COSTS + "".join(map(costs, ALL_GATES)),
    "conditions": conditions,
    "needs": lambda: NEEDS + "".join(map(needs, ALL_GATES)),
    "published": lambda: PUBLISHED + published(),
}


def rendered() -> str:
    """Return the text of the page with all tables as the data have them now."""
    page = PAGE.read_text(encoding="utf-8")
    for name, write in PARTS.items():
        text, place = write(), rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page = re.sub(place, lambda m, text=text: m[1] + text + m[2], page, flags=re.S)
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
