"""How constant the gates of a trained network are over a data set."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spem.functional import Pooled
from spem.gates import Gate


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


def gate_report(
    model: nn.Module, batches: Iterable[tuple[Tensor, object]]
) -> dict[str, GateStatistics]:
    """Measure the multipliers of every pooled gate of a model, which is put in eval mode.

    Args:
        model: a network with gates; gates that need the map itself are passed over.
        batches: pairs whose first part are images (N, C, H, W) on the model's device.

    Returns:
        The statistics by the gate's name, in the model's order.

    Raises:
        ValueError: the model has no pooled gate, or there are no images.
    """
    gates = pooled_gates(model)
    if not gates:
        raise ValueError("the model has no gates whose multipliers belong to whole maps")
    moments = {name: _Moments() for name in gates}
    model.eval()
    with torch.inference_mode(), _recorded(gates, moments):
        for images, _ in batches:
            model(images)
    if not all(moment.count for moment in moments.values()):
        raise ValueError("there are no images to measure the gates on")
    return {
        name: GateStatistics(m.mean, (m.squares / m.count).sqrt(), m.count)
        for name, m in moments.items()
    }


def pooled_gates(model: nn.Module) -> dict[str, Gate]:
    """Return the pooled gates of a model by name, without those inside of other gates (ASR's)."""
    gates = {name: module for name, module in model.named_modules() if isinstance(module, Gate)}
    return {n: g for n, g in gates.items() if not any(n.startswith(f"{m}.") for m in gates)}


class _Moments:
    """Mean and squared deviations, merged batch by batch."""

    def __init__(self):
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        values = values.double().cpu()
        count, mean = len(values), values.mean(0)
        delta, total = mean - self.mean, self.count + count
        squares = (values - mean).square().sum(0) + delta.square() * (self.count * count / total)
        self.squares = self.squares + squares
        self.mean = self.mean + delta * (count / total)
        self.count = total


@contextmanager
def _recorded(gates: dict[str, Gate], moments: dict[str, _Moments]) -> Iterator[None]:
    def recording(gate: Gate, moment: _Moments):
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
