"""The multipliers of gates, recorded during forward passes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from spem._checks import check_module
from spem.gates.attention import Attention
from spem.gates.gate import Gate
from spem.gates.position import PositionGate


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
    """Return the gates of a model that give one multiplier a channel, by name, in its order.

    Gates inside of other gates, as ASR has, are left out.
    """
    gates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Gate) and not isinstance(module, PositionGate)
    }
    return {n: g for n, g in gates.items() if not any(n.startswith(f"{m}.") for m in gates)}


@contextmanager
def record_gates(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record the multipliers of all gates of a model while the block runs.

    Yields:
        For every gate, by its name in the model, a list that grows by one tensor at each of its
        forward passes: its multipliers, (N, C), or (1, C) where all images have the same, detached
        from the graph. The list of a gate whose multipliers differ between the positions of a
        channel stays empty. Clear a list to free its memory.

    Example:
        >>> import torch
        >>> from spem import create_model, record_gates
        >>> model = create_model("resnet8", "spem")
        >>> with record_gates(model) as gates:
        ...     logits = model(torch.randn(2, 3, 32, 32))
        >>> [multiplier.shape for multiplier in gates["layer1.0.bn2.gate"]]
        [torch.Size([2, 16])]
    """
    check_module(model)
    gates = {name: gate for name, gate in model.named_modules() if isinstance(gate, Attention)}
    recorded: dict[str, list[Tensor]] = {name: [] for name in gates}
    names = {gate: name for name, gate in gates.items()}

    def record(gate: Attention, multiplier: Tensor) -> None:
        recorded[names[gate]].append(multiplier.detach())

    with ExitStack() as hooks:
        for gate in names:
            hooks.enter_context(gate.register_multiplier_hook(record))
        yield recorded
