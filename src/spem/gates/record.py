"""Multipliers of gates, recorded during forward passes, and their statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spem.functional import Pooled
from spem.gates.gate import Gate


class GateStatistics(NamedTuple):
    """The multipliers of one gate over the images of a data set.

    Attributes:
        mean: over the images, (C,), float64.
        std: over the images, (C,), float64.
        images: their number.
    """

    mean: Tensor
    std: Tensor
    images: int

    @property
    def spread(self) -> float:
        """Root mean square of the deviations over that of the means: 0 for a constant gate."""
        return (self.std.square().mean() / self.mean.square().mean()).sqrt().item()


def pooled_gates(model: nn.Module) -> dict[str, Gate]:
    """Return the pooled gates of a model by name, without those inside of other gates (ASR's)."""
    gates = {name: module for name, module in model.named_modules() if isinstance(module, Gate)}
    return {n: g for n, g in gates.items() if not any(n.startswith(f"{m}.") for m in gates)}


class Moments:
    """Mean and squared deviations, merged batch by batch."""

    def __init__(self):
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Merge the multipliers of a batch, (N, C)."""
        values = values.double().cpu()
        count, mean = len(values), values.mean(0)
        delta, total = mean - self.mean, self.count + count
        squares = (values - mean).square().sum(0) + delta.square() * (self.count * count / total)
        self.squares = self.squares + squares
        self.mean = self.mean + delta * (count / total)
        self.count = total


@contextmanager
def recorded(gates: dict[str, Gate], moments: dict[str, Moments]) -> Iterator[None]:
    """Record the multipliers of gates while the block runs."""

    def recording(gate: Gate, moment: Moments):
        def multiplier(pooled: Pooled) -> Tensor:
            result = type(gate).multiplier(gate, pooled)
            moment.add(result)
            return result

        return multiplier

    for name, gate in gates.items():
        vars(gate)["multiplier"] = recording(gate, moments[name])
    try:
        yield
    finally:
        for gate in gates.values():
            del vars(gate)["multiplier"]
