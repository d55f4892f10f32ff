"""The loop: check a case, then time it in turns with its baseline."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import torch

from benchmarks.bench.capture import fresh_dynamo
from benchmarks.bench.cases import Case, Plan
from benchmarks.bench.memory import case_memory
from benchmarks.bench.runs import ready
from spem import __version__
from spem.compare.timing import (
    RedCaseError,
    Work,
    device_name,
    interleave,
    quantiles,
    ratios,
    step_memory,
)

Row = dict[str, object]
_COPY_PASSES = 2


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        device: on which.
        pairs: rounds of each comparison.
        threads: of the CPU.
        memory: whether the memory of one run is measured, too.

    Raises:
        ValueError: a number is too small.
    """

    device: torch.device
    pairs: int
    threads: int
    memory: bool

    def __post_init__(self):
        if self.pairs < 2:
            raise ValueError(f"pairs is {self.pairs}, must be at least 2")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, must be at least 1")

    def identity(self) -> Row:
        """Return what every row says of the machine."""
        return {
            "device": device_name(self.device),
            "processor": self.device.type,
            "torch": torch.__version__,
            "spem": __version__,
            "threads": self.threads,
        }


def measure(plan: Plan, settings: Settings) -> Iterator[tuple[Case, Row]]:
    """Yield every case of a plan with its row of the table, in turn."""
    with _threads(settings.threads):
        for place, cases in groupby(plan.cases(), key=_place):
            baselines = _baselines(place, settings.device)
            for case in cases:
                yield case, _measure_case(case, baselines, settings)
                if settings.device.type == "cuda":
                    torch.cuda.empty_cache()


def _place(case: Case) -> Case:
    """Return the plain case beside which a case is measured."""
    return replace(case, gate="none", form="torch", way="eager")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _baselines(place: Case, device: torch.device) -> dict[str, Work]:
    """Return the baseline and its twin: plain networks, or copies of an operation's map."""
    works: dict[str, Work] = {}
    if place.group != "operations":
        works = {name: ready(place, device).work() for name in ("plain", "again")}
    if place.group in ("operations", "tail"):
        works["copy"] = _copy(place, device)
    if place.group == "operations":
        works["again"] = _copy(place, device)
    return works


def _copy(place: Case, device: torch.device) -> Work:
    x = ready(place, device).inputs[0].detach()
    y = torch.empty_like(x)
    return lambda: lambda: y.copy_(x)


def _measure_case(case: Case, baselines: dict[str, Work], settings: Settings) -> Row:
    """Return the row of a case, without numbers where it is red."""
    try:
        with fresh_dynamo():
            run = ready(case, settings.device)
            run.check()
            works = {**baselines, "case": run.work()}
            seconds = interleave(works, settings.pairs, settings.device)
            used = _memory(case, works["case"], settings)
    except (RedCaseError, RuntimeError) as error:  # out of memory, or a compiler that fails
        reason = " ".join(str(error).split()) or type(error).__name__
        return {**asdict(case), "state": f"red: {reason[:300]}"}
    passes = run.passes()
    moved = None if passes is None else passes * run.map_bytes()
    row: Row = asdict(case) | {
        "state": "ok",
        "pairs": settings.pairs,
        "memory": used,
        "moved": moved,
    }
    return row | _times(seconds) | _share(seconds, run.map_bytes(), moved)


def _memory(case: Case, work: Work, settings: Settings) -> int | None:
    # What a graph needs was allocated when it was captured.
    if not settings.memory or case.way == "graph":
        return None
    if settings.device.type == "cuda":
        return step_memory(work, settings.device)
    return case_memory(case, settings.threads)


def _times(seconds: dict[str, list[float]]) -> Row:
    baseline = "plain" if "plain" in seconds else "copy"
    row: Row = {"baseline": baseline, "baseline_seconds": quantiles(seconds[baseline])[50]}
    row["seconds"] = quantiles(seconds["case"])[50]
    for column, name in (("ratio", "case"), ("noise", "again")):
        for percent, value in ratios(seconds, name, baseline).items():
            row[f"{column}_{percent}"] = value
    return row


def _share(seconds: dict[str, list[float]], map_bytes: int, moved: int | None) -> Row:
    """Return the part of the bandwidth of a copy of the map that a case reaches."""
    if moved is None:
        return {}
    copied = _COPY_PASSES * map_bytes
    share = moved / copied / ratios(seconds, "case", "copy")[50]
    copy_seconds = quantiles(seconds["copy"])[50]
    return {"copy_share": share, "copy_seconds": copy_seconds, "copy_moved": copied}
