"""What is measured: one case is one line of the table."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.bench.imagenet import SIZE, ImageNetResNet50
from spem import GATES, kernels
from spem._messages import unknown
from spem.models import create_model

NETWORK_GROUPS = ("training", "inference")
GROUPS = ("operations", "tail", *NETWORK_GROUPS)
OPERATIONS = ("pool", "pool backward", "recalibrate", "recalibrate backward")
TAILS = ("forward", "forward and backward")
POOLED = ("spem", "se", "eca", "srm", "gct", "ie", "sem", "lsas", "dianet", "cbam", "iebn")
FORMS = ("ours", "eager", "today", "timm", "whole", "graph")
TIMM_GATES = ("se", "eca")
PRECISIONS = ("float32", "bfloat16", "float16")
DTYPES = {name: getattr(torch, name) for name in (*PRECISIONS, "float64")}  # the last: the truth
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
IMAGENET = "imagenet50"  # beside the networks of create_model
# Only the channel half of CBAM follows from pooled values; WHOLE is the module. The other options
# have no default, or one that does not fit the widths of the networks for CIFAR.
WHOLE = "cbam whole"
GATE_OPTIONS: dict[str, dict[str, Any]] = {
    "cbam": {"spatial": False},
    "srp": {"rho": 0.5},
    "sa": {"groups": 8},
}
# What `--gates '[all]'` means; those beside `POOLED` have no other form than ours.
ALL_GATES = tuple(WHOLE if gate == "cbam" else gate for gate in GATES)


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Args:
        group: one of `GROUPS`.
        subject: one of `OPERATIONS` or `TAILS`, or the name of a network.
        shape: of the map, or of the images.
        dtype: one of `PRECISIONS`; networks keep float32 weights and run under autocast.
        format: a key of `FORMATS`.
        gate: a key of `GATES`, `WHOLE` or "none".
        form: "torch": separate operations behind `nn.BatchNorm2d`; "ours": this library; "today":
            as users write gates today; "timm": the gates of timm.
        way: "whole" for torch.compile, "graph" for one CUDA graph of all that is timed, else an
            implementation of `spem.kernels.use`, of which the forms without operations of this
            library have "eager" alone.
    """

    group: str
    subject: str
    shape: tuple[int, int, int, int]
    dtype: str
    format: str
    gate: str = "none"
    form: str = "torch"
    way: str = "eager"

    def __str__(self) -> str:
        gate = "no gate" if self.gate == "none" else self.gate
        size = "x".join(map(str, self.shape))
        where = f"{self.group} {self.subject} {size} {self.dtype} {self.format}"
        return f"{where}: {gate}, {self.form}, {self.way}"


@dataclass(frozen=True)
class Plan:
    """The axes of the table, checked; `cases` is what they span.

    Raises:
        ValueError: a name is unknown or a number too small.
    """

    groups: Sequence[str]
    models: dict[str, int]  # with their batch sizes
    shapes: Sequence[tuple[int, int, int, int]]
    dtypes: Sequence[str]
    formats: Sequence[str]
    gates: Sequence[str]
    forms: Sequence[str]
    kernels: str
    size: int = 32

    def __post_init__(self):
        known = {
            "group": (self.groups, GROUPS),
            "dtype": (self.dtypes, PRECISIONS),
            "memory format": (self.formats, FORMATS),
            "gate": (self.gates, self._known_gates()),
            "case": (self.forms, FORMS),
        }
        for kind, (names, allowed) in known.items():
            check_names(kind, names, allowed)
        if self.size < 8:
            raise ValueError(f"the side of the images is {self.size}, must be at least 8")
        for name, batch in self.models.items():
            if batch < 2:
                raise ValueError(f"the batch of {name} is {batch}, must be at least 2")
            with torch.device("meta"):
                bench_network(name, None)
        with kernels.use(self.kernels):
            pass

    def _known_gates(self) -> Sequence[str]:
        ours = {*self.forms} <= {"ours", "eager"} and {*self.groups} <= {*NETWORK_GROUPS}
        return (*POOLED, *ALL_GATES) if ours else POOLED

    def cases(self) -> Iterator[Case]:
        """Yield the cases, those with one baseline in a row."""
        for group in self.groups:
            for subject, shape in self._subjects(group):
                for dtype in self.dtypes:
                    for layout in self.formats:
                        place = (group, subject, shape, dtype, layout)
                        columns = self._operations if group == "operations" else self._columns
                        yield from (Case(*place, *column) for column in columns())

    def _subjects(self, group: str) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        if group in NETWORK_GROUPS:
            for name, batch in self.models.items():
                size = SIZE if name == IMAGENET else self.size
                yield name, (batch, 3, size, size)
            return
        for shape in self.shapes:
            for subject in OPERATIONS if group == "operations" else TAILS:
                yield subject, shape

    def _columns(self) -> Iterator[tuple[str, str, str]]:
        """Yield gate, form and way of every network or tail that is compared with the plain one.

        The first is plain itself.
        """
        ours, eager, today, by_timm, whole, graph = (form in self.forms for form in FORMS)
        for gate in ("none", *self.gates):
            plain, spem, timm = gate == "none", gate == "spem", by_timm and gate in TIMM_GATES
            columns = [
                ("torch", "eager", plain),
                ("ours", self.kernels, ours),
                ("ours", "eager", eager and spem and self.kernels != "eager"),
                ("today", "eager", today and not plain),
                ("timm", "eager", timm),
                ("torch", "whole", whole and plain),
                ("ours", "whole", whole and spem),
                ("timm", "whole", whole and timm),
                ("torch", "graph", graph and plain),
                ("ours", "graph", graph),
                ("today", "graph", graph and today and spem),
            ]
            yield from ((gate, form, way) for form, way, wanted in columns if wanted)

    def _operations(self) -> Iterator[tuple[str, str, str]]:
        if "ours" in self.forms:
            yield "none", "ours", self.kernels
        if "eager" in self.forms and self.kernels != "eager":
            yield "none", "ours", "eager"
        if "today" in self.forms:
            yield "none", "today", "eager"


def check_names(kind: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError unless all names are allowed."""
    known = list(allowed)
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def gate_of(name: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return the key in `GATES` and the options of a gate of a case."""
    if name == WHOLE:
        return "cbam", {}
    return name, {} if name is None else GATE_OPTIONS.get(name, {})


def bench_network(name: str, gate: str | None) -> nn.Module:
    """Return a network of this name, of bottlenecks where it has the choice and they fit."""
    gate, options = gate_of(gate)
    if name == IMAGENET:
        return ImageNetResNet50(gate, options)
    family, depth = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    bottleneck = family in ("resnet", "preresnet") and depth and (int(depth) - 2) % 9 == 0
    return create_model(name, gate, block="bottleneck" if bottleneck else None, **options)


def implementation(case: Case) -> AbstractContextManager[None]:
    """Return the context in which a case runs: its kernels, where it names any of ours."""
    separate = case.form != "ours" and case.way == "eager"
    by_itself = separate or case.way in ("whole", "graph")
    return nullcontext() if by_itself else kernels.use(case.way)
