"""A network whose gates are shared by stage and switched block by block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from spem._messages import shorten
from spem.gates import Attention, Place, create_gate_at
from spem.norm import GatedBatchNorm2d
from spem.surgery.slots import find_slots


class Supernet(nn.Module):
    """A network with one gate for each stage, which is applied in the blocks whose bit is set.

    In training, every forward pass draws each bit with probability ½ from torch's global generator;
    in evaluation the bits are those of `mask`, at first all 0.

    Args:
        model: a network without gates whose residual branches end in a `GatedBatchNorm2d`, as
            `create_model` builds it; it becomes a submodule.
        gate: a key of `GATES`.
        options: keyword arguments of the gate.

    Attributes:
        mask: one bit a block, in the model's order.

    Raises:
        ValueError: the model has gates or other norms, or the gate needs a block's input as well.

    Source: the supernet of Huang et al., "Efficient Attention Network", 2020 (arXiv 2011.14058).
    """

    def __init__(self, model: nn.Module, gate: str, **options: Any):
        super().__init__()
        slots = find_slots(model, "residual")
        widths = []
        for name, slot in slots.items():
            if not isinstance(slot, GatedBatchNorm2d) or slot.gate is not None:
                raise ValueError(f"{shorten(name)} must be a GatedBatchNorm2d without a gate")
            widths.append(slot.num_features)
        self.model = model
        self.names = list(slots)
        self.units = nn.ModuleDict()
        self._views = [
            self._view(name.split(".")[0], width, gate, options)
            for name, width in zip(slots, widths, strict=True)
        ]
        self.mask = [0] * len(slots)

    def _view(self, stage: str, channels: int, gate: str, options: dict[str, Any]) -> Attention:
        """Return the gate that a block calls: that of its stage, or one that follows it."""
        if stage not in self.units:
            self.units[stage] = create_gate_at(gate, channels, Place(), options)
        unit = cast(Attention, self.units[stage])
        # In a list, not registered: the unit is stored once.
        if unit.shares_unit:
            return create_gate_at(gate, channels, Place(leader=unit), options)
        return unit

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output with the gates of the drawn bits, or of `mask`."""
        bits = (torch.rand(len(self.mask)) < 0.5).tolist() if self.training else self.mask
        with self._gated(bits):
            return self.model(x)

    @contextmanager
    def _gated(self, bits: Sequence[int]) -> Iterator[None]:
        norms = [self.model.get_submodule(name) for name in self.names]
        for norm, view, bit in zip(norms, self._views, bits, strict=True):
            vars(norm)["gate"] = view if bit else None
        try:
            yield
        finally:
            for norm in norms:
                vars(norm)["gate"] = None
            for unit in self.units.values():
                if isinstance(unit, Attention):
                    unit.reset()
