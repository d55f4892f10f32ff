"""The multipliers of each gate of a network over a data set: by channel, class and value."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_module, check_whole
from spem.explain.constancy import Moments, iterate_pairs
from spem.explain.untouched import in_evaluation
from spem.gates.record import record_gates

# Multipliers are counted in bins of this width, which fit any range.
BIN = 1 / 128


class GateProfile(NamedTuple):
    """The multipliers of one gate over the images of a data set.

    Attributes:
        mean: over the images, (C,), float64.
        std: over the images, (C,), float64.
        by_class: mean over the images of each class, (classes, C), float64; NaN without images.
        counts: how many multipliers of all channels lie in bin k, from k·BIN to (k + 1)·BIN.
    """

    mean: Tensor
    std: Tensor
    by_class: Tensor
    counts: dict[int, int]


def profile_gates(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> dict[str, GateProfile]:
    """Measure the multipliers of every gate over a data set, for each class.

    The network computes in evaluation mode and is left as it was.

    Args:
        model: a network with gates. Gates whose multipliers differ between the positions of a
            channel, or that have none, are left out.
        batches: pairs of images (N, C, H, W) on the model's device and labels (N,).
        classes: their number.

    Returns:
        The profiles by the gate's name, in the model's order.

    Raises:
        ValueError: the model has no such gate, or there are no images.
    """
    check_module(model)
    check_whole("classes", classes)
    tallies: dict[str, _Tally] = {}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = 0
    with torch.inference_mode(), in_evaluation(model, device), record_gates(model) as gates:
        if not gates:
            raise ValueError(f"this {type(model).__name__} has no gates")
        for batch, labels in iterate_pairs(batches):
            model(batch)
            images += len(batch)
            for name, runs in gates.items():
                for multipliers in runs:
                    tally = tallies.setdefault(name, _Tally(classes, multipliers.shape[1]))
                    tally.add(multipliers.expand(len(batch), -1), labels)
                runs.clear()
    if not images:
        raise ValueError("there are no images to measure the gates on")
    if not tallies:
        raise ValueError(
            f"the multipliers of every gate of this {type(model).__name__} differ between the"
            " positions of a channel, so there is none for each channel"
        )
    return {name: tallies[name].read() for name in gates if name in tallies}


class _Tally:
    """What is counted of the multipliers of one gate, batch by batch."""

    def __init__(self, classes: int, channels: int):
        self._moments = Moments()
        self._sums = torch.zeros(classes, channels, dtype=torch.float64)
        self._images = torch.zeros(classes, 1, dtype=torch.float64)
        self._counts: Counter[int] = Counter()

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Count the multipliers of a batch, (N, C), of images with these labels, (N,)."""
        values, labels = values.double().cpu(), labels.cpu()
        self._moments.add(values)
        self._sums.index_add_(0, labels, values)
        self._images.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
        bins, counts = (values / BIN).floor().long().unique(return_counts=True)
        self._counts.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))

    def read(self) -> GateProfile:
        """Return what was counted."""
        moments = self._moments
        std = (moments.squares / moments.count).sqrt()
        by_class = self._sums / self._images  # 0 / 0 is NaN
        return GateProfile(moments.mean, std, by_class, dict(sorted(self._counts.items())))
