"""Timing in interleaved rounds, so that the machine's moods fall on all cases alike."""

import statistics
import time
from collections.abc import Callable


def interleave(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run every case once a round, in turning order, and return its seconds per round."""
    names = list(cases)
    for name in names:
        cases[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], case: str, baseline: str) -> str:
    """Describe case / baseline, paired by round: median and quartiles."""
    pairs = [a / b for a, b in zip(seconds[case], seconds[baseline], strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    milliseconds = statistics.median(seconds[case]) * 1e3
    return (
        f"{case} / {baseline}: {middle:.3f} (quartiles {low:.3f} to {high:.3f}, n = {len(pairs)}), "
        f"{milliseconds:.2f} ms"
    )
