"""DIANet: one recurrent unit for all blocks of a stage, which makes one step at each block."""

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from spem._messages import shorten
from spem.functional import Pooled
from spem.gates.attention import Place
from spem.gates.gate import hidden_width
from spem.gates.layers import Linear
from spem.gates.pooling import DescriptorGate, Pooling


class DIANet(DescriptorGate):
    """Dense-and-Implicit Attention.

    At block t with the descriptor u (the mean by default) and the states h, c of block t − 1, zero
    at the first: (i, f, g, o) = S_ih(u) + S_hh(h), each S = W₂·relu(W₁·d + b₁) + b₂ of hidden
    width C // reduction; c ← σ(f)·c + σ(i)·tanh(g), h ← σ(o)·σ(c); the multiplier is h.

    The first gate of a stage owns the unit, 10C²/r + 2C/r + 8C parameters; the later ones are built
    with `leader=` and own nothing. The state lives for one forward of the stage. A gate
    without followers makes one step from the zero state.

    Args:
        channels: C.
        reduction: r.
        leader: the stage's first gate; None for the first gate itself.
        init: "paper", PyTorch's layers, or "identity", the second layers at 0 and gain 4.
        **pooling: the descriptor, see `DescriptorGate`.

    Raises:
        ValueError: an option is out of range, or not that of the leader.

    Source: Huang, Liang, Liang and Yang, "DIANet: Dense-and-Implicit Attention Network", AAAI 2020
        (arXiv 1905.10671); the sigmoid on the cell is that of the authors' code.
    """

    needs_norm = True
    shares_unit = True
    # The backward pass in which the stage began (`_current_backward`); pickles may lack it.
    _backward = -1

    @classmethod
    def options_at(cls, place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options and the stage's first gate."""
        return {**options, "leader": place.leader}

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        leader: "DIANet | None" = None,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        if not isinstance(leader, DIANet | None):
            raise ValueError(f"leader is {shorten(leader)}, must be a DIANet gate")
        if leader is not None and (leader.channels, leader.reduction) != (channels, reduction):
            raise ValueError(
                f"the leader has {leader.channels} channels and reduction {leader.reduction}, "
                f"the gate {channels} and {reduction}"
            )
        self.reduction = reduction
        self.followers = 0
        self._state: tuple[Tensor, Tensor] | None
        self.reset()
        # In a tuple, so that the leader is not registered a second time below this module.
        self._leader = () if leader is None else (leader,)
        if leader is None:
            width = hidden_width(channels, reduction)
            self.w_ih, self.w_hh = (_build_bottleneck(channels, width) for _ in range(2))
        else:
            leader.followers += 1
        if init == "identity":
            last = (self.w_ih[-1], self.w_hh[-1]) if leader is None else ()
            self.start_at_identity(4, *last)

    @property
    def follows(self) -> bool:
        """Whether the unit belongs to an earlier gate."""
        return bool(self._leader)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C), and advance the state of the stage."""
        u = self.descriptor(pooled)
        unit = self._leader[0] if self._leader else self
        if unit is self:
            self.reset()
        elif unit._backward != _current_backward():
            raise RuntimeError(
                "a checkpoint runs this gate again without the first gate of its stage, whose state"
                " it goes on from: checkpoint whole stages, or none of their blocks"
            )
        hidden, cell = (u.new_zeros(u.shape),) * 2 if unit._state is None else unit._state
        i, f, g, o = (unit.w_ih(u) + unit.w_hh(hidden)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.sigmoid()
        unit._steps += 1
        unit._state = (hidden, cell) if unit._steps <= unit.followers else None
        return hidden

    def reset(self) -> None:
        """Go back to the zero state, as before the first block of a stage."""
        self._steps, self._state, self._backward = 0, None, _current_backward()

    def __getstate__(self) -> dict[str, Any]:
        # A state of an unfinished forward belongs to its graph, which cannot be copied.
        return {**self.__dict__, "_state": None, "_steps": 0, "_backward": -1}


def _current_backward() -> int:
    """Return the number of the backward pass that runs now, -1 outside.

    Within one, only checkpoints run modules: their blocks alone, from the last to the first.
    """
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _build_bottleneck(channels: int, width: int) -> nn.Sequential:
    last = Linear(width, 4 * channels)  # first, as a seed has always drawn it
    return nn.Sequential(Linear(channels, width), nn.ReLU(), last)
