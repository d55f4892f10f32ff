"""How constant the gates of a trained network are over a data set."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spem.gates.record import GateStatistics, Moments, pooled_gates, recorded


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
    moments = {name: Moments() for name in gates}
    model.eval()
    with torch.inference_mode(), recorded(gates, moments):
        for images, _ in batches:
            model(images)
    if not all(moment.count for moment in moments.values()):
        raise ValueError("there are no images to measure the gates on")
    return {
        name: GateStatistics(m.mean, (m.squares / m.count).sqrt(), m.count)
        for name, m in moments.items()
    }
