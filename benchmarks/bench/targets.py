"""The speeds that the library is to reach, and whether a table of results reaches them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.bench.cases import NETWORK_GROUPS
from benchmarks.bench.table import Row

# (gate, form, way) -> ratio to the plain network, eager.
Ratios = dict[tuple[str, str, str], float]
_PLAIN = ("none", "torch")


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Args:
        title: what is divided by what.
        value: the quotient, from the ratios to plain eager; KeyError where a case is missing.
        limits: by mode and memory format.
        at_least: whether the limit is a lower one.
        network: the only one that it is a target of; empty for all.
        of_memory: whether it divides the bytes that a step needs, instead of ratios of times.
    """

    title: str
    value: Callable[[Ratios], float]
    limits: dict[tuple[str, str], float]
    at_least: bool = False
    network: str = ""
    of_memory: bool = False


class Verdict(NamedTuple):
    """A target at one place: where, the limit, and what was measured (None: nothing yet)."""

    title: str
    subject: str
    format: str
    mode: str
    limit: float
    at_least: bool
    measured: float | None

    @property
    def reached(self) -> bool | None:
        """Whether it is reached, None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def _plain(found: Ratios) -> float:
    """Return plain in the way that PyTorch runs it fastest."""
    others = [v for (*column, way), v in found.items() if (*column,) == _PLAIN and way != "eager"]
    return min([1.0, *others])


def _ours(gate: str) -> Callable[[Ratios], float]:
    """Return our fastest way of a gate."""

    def value(found: Ratios) -> float:
        mine = [v for (name, form, _), v in found.items() if (name, form) == (gate, "ours")]
        if not mine:
            raise KeyError(gate)
        return min(mine)

    return value


def _beside_plain(gate: str) -> Callable[[Ratios], float]:
    return lambda found: _ours(gate)(found) / _plain(found)


def _both(training: float, inference: float, formats: str = "NHWC NCHW") -> dict:
    modes = {"training": training, "inference": inference}
    return {(mode, layout): v for mode, v in modes.items() for layout in formats.split()}


CPU = (
    Target("SPEM / plain", _beside_plain("spem"), _both(1.05, 1.08, "NHWC")),
    Target("SPEM / plain eager", _ours("spem"), _both(0.92, 1.08, "NCHW")),
    *(
        Target(f"{gate.upper()} / plain", _beside_plain(gate), _both(1.06, 1.10, "NHWC"))
        for gate in ("se", "eca", "srm", "gct", "sem")
    ),
    Target(
        "our plain network / plain eager",
        _ours("none"),
        _both(1.0, 1.0, "NHWC") | _both(0.85, 1.0, "NCHW"),
    ),
    Target(
        "SPEM eager / plain eager", lambda found: found["spem", "ours", "eager"], _both(1.15, 1.12)
    ),
    Target(
        "SPEM as users write it today, eager / ours",
        lambda found: found["spem", "today", "eager"] / _ours("spem")(found),
        _both(1.3, 1.5),
        at_least=True,
    ),
    Target(
        "both compiled whole, SPEM / plain",
        lambda found: found["spem", "ours", "whole"] / found[*_PLAIN, "whole"],
        _both(1.04, 1.08),
    ),
)
CUDA = (
    Target("SPEM / plain", _beside_plain("spem"), _both(1.03, 1.08)),
    Target(
        "both compiled whole, SPEM / plain",
        lambda found: found["spem", "ours", "whole"] / found[*_PLAIN, "whole"],
        _both(1.03, 1.08, "NHWC"),
        network="imagenet50",
    ),
    Target(
        "SPEM by our kernels, eager / plain eager",
        lambda found: found["spem", "ours", "triton"],
        _both(1.0, 1.0, "NHWC"),
        network="imagenet50",
    ),
    Target(
        "SPEM as users write it today, eager / ours",
        lambda found: found["spem", "today", "eager"] / _ours("spem")(found),
        {("training", "NHWC"): 3.0, ("training", "NCHW"): 3.0},
        at_least=True,
        network="resnet164",
    ),
    Target(
        "SPEM / plain eager, memory of a step",
        lambda used: used["spem", "ours", "triton"] / used["none", "torch", "eager"],
        {("training", "NHWC"): 1.0, ("training", "NCHW"): 1.0},
        network="resnet164",
        of_memory=True,
    ),
)
_OPERATION_SHARE = 0.8
_TAIL_SHARE = 1 / 1.15


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """Return the targets of the networks of one run, and on a GPU those of the operations, too.

    Args:
        rows: of one device and one pair of versions.
    """
    good = [row for row in rows if row["state"] == "ok"]
    on_gpu = any(row["processor"] == "cuda" for row in good)
    places: dict[tuple[str, str, str, str], Ratios] = {}
    memory: dict[tuple[str, str, str, str], Ratios] = {}
    for row in good:
        if row["group"] in NETWORK_GROUPS:
            subject = f"{row['subject']}, batch {row['shape'].partition('x')[0]}, {row['dtype']}"
            place = (row["subject"], subject, row["group"], row["format"])
            column = row["gate"], row["form"], row["way"]
            places.setdefault(place, {})[column] = float(row["ratio_50"])
            if row["memory"]:
                memory.setdefault(place, {})[column] = float(row["memory"])
    found = []
    for t in CUDA if on_gpu else CPU:
        for place, ratios in sorted(places.items()):
            network, subject, mode, layout = place
            if (mode, layout) in t.limits and t.network in ("", network):
                value = _value(t, memory.get(place, {}) if t.of_memory else ratios)
                limit = t.limits[mode, layout]
                found.append(Verdict(t.title, subject, layout, mode, limit, t.at_least, value))
    return found + [v for row in good if on_gpu for v in _bandwidth(row)]


def _value(target: Target, numbers: Ratios) -> float | None:
    try:
        return target.value(numbers)
    except KeyError:
        return None


def _bandwidth(row: Row) -> list[Verdict]:
    tail = row["group"] == "tail" and row["subject"] == "forward and backward"
    if row["form"] != "ours" or not (tail or row["group"] == "operations"):
        return []
    limit = _TAIL_SHARE if tail else _OPERATION_SHARE
    title = f"{row['group']}: {row['subject']}, {row['gate']}, {row['way']}: share of the copy's"
    subject = f"{row['shape']}, {row['dtype']}"
    share = float(row["copy_share"])
    return [Verdict(title, subject, row["format"], row["group"], limit, True, share)]
