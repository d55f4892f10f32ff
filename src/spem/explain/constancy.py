"""Measure how constant the gates of a trained network are over a data set."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._messages import shorten
from spem.functional import check_map
from spem.gates.record import GateStatistics, pooled_gates, record_gates


def gate_report(
    model: nn.Module, batches: Iterable[tuple[Tensor, object]]
) -> dict[str, GateStatistics]:
    """Measure the multipliers of every gate that reads pooled values, over a data set.

    Args:
        model: a network with gates, which is put in evaluation mode; its other gates are left out.
        batches: pairs whose first part are images (N, C, H, W) on the model's device.

    Returns:
        The statistics by the gate's name, in the model's order.

    Raises:
        ValueError: the model has no such gate, or there are no images.
    """
    check_module(model)
    moments = {name: Moments() for name in pooled_gates(model)}
    if not moments:
        raise ValueError("the model has no gates whose multipliers follow from pooled values")
    model.eval()
    with torch.inference_mode(), record_gates(model) as gates:
        for batch, _ in iterate_pairs(batches):
            model(batch)
            for name, multipliers in gates.items():
                if name in moments and multipliers:
                    moments[name].add(torch.cat(multipliers))
                multipliers.clear()
    if not all(moment.count for moment in moments.values()):
        raise ValueError("there are no images to measure the gates on")
    return {
        name: GateStatistics(m.mean, (m.squares / m.count).sqrt(), m.count)
        for name, m in moments.items()
    }


def iterate_pairs(
    batches: Iterable[tuple[Tensor, Any]],
) -> Iterator[tuple[Tensor, Any]]:
    """Yield images and labels, or raise ValueError where they are no pairs of such."""
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | Mapping):
        raise ValueError(f"batches is {shorten(batches)}, must give pairs whose first is images")
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batches gave {shorten(batch)}, must give pairs (images, labels)")
        check_map("images of batches", batch[0])
        yield batch[0], batch[1]


class Moments:
    """Mean and squared deviations of multipliers, merged batch by batch."""

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
