"""Build the gates of a network, each for its place."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spem._checks import check_choice
from spem.gates import GATES, Attention, Place, create_gate_at
from spem.surgery.slots import check_mask

PLACEMENTS = ("residual", "conv", "norm", "last-stage", "conv3x3", "between-stages")


class Placement:
    """Builds the gates of one network, asked for in the order of its layers.

    Args:
        gate: a key of `GATES`; None for no gates.
        options: keyword arguments of the gate.
        placement: "residual": at the end of every residual branch (VGG: behind every norm;
            DenseNet: on the new channels); "conv": before every convolution; "norm": on every norm
            but those of shortcuts; "last-stage": as "residual", in the last stage only; "conv3x3":
            behind the last 3×3 convolution of every block, before its norm; "between-stages": on
            the output of every stage but the last. None: what the authors of the gate do.
        mask: 0 or 1 for every place, in their order; places with 0 get no gate. None: all do.

    Raises:
        ValueError: a name is unknown, or options, placement or mask are given without a gate.
    """

    def __init__(
        self,
        gate: str | None,
        options: dict[str, Any],
        placement: str | None = None,
        mask: Sequence[int] | None = None,
    ):
        places = {"placement": placement, "mask": mask}
        given = [*options, *(name for name, value in places.items() if value is not None)]
        if gate is None and given:
            raise ValueError(f"{', '.join(given)} given without a gate: name one, or leave it out")
        if gate is not None:
            check_choice("gate", gate, GATES)
        if placement is not None:
            check_choice("placement", placement, PLACEMENTS)
        if mask is not None:
            check_mask(mask)
        self.gate, self.options, self.mask = gate, options, mask
        self.placement = placement or (GATES[gate].placement if gate else "residual")
        self.places = 0
        self._last_stage = True
        self._map_size: int | None = None
        self._leader: Attention | None = None

    def start_stage(self, *, last: bool, size: int) -> None:
        """Begin a stage.

        Args:
            last: whether it is the network's last.
            size: side of its feature maps for images of 32×32.
        """
        self._last_stage, self._map_size, self._leader = last, size, None

    def residual(self, channels: int, source_channels: int) -> Attention | None:
        """Return the gate for the end of a residual branch, or None.

        Args:
            channels: of the branch's output.
            source_channels: of the block's input.
        """
        placements = ("residual", "last-stage") if self._last_stage else ("residual",)
        return self._build(channels, source_channels) if self.placement in placements else None

    def norm(self, channels: int) -> Attention | None:
        """Return the gate for a norm, or None."""
        return self._build(channels) if self.placement == "norm" else None

    def conv(self, channels: int) -> Attention | None:
        """Return the gate for the input of a convolution, or None."""
        return self._build(channels) if self.placement == "conv" else None

    def inner(self, channels: int) -> Attention | None:
        """Return the gate for the output of a block's last 3×3 convolution, or None."""
        return self._build(channels) if self.placement == "conv3x3" else None

    def between(self, channels: int) -> list[Attention]:
        """Return the gate for the output of a stage before another one, or nothing."""
        gate = self._build(channels) if self.placement == "between-stages" else None
        return [] if gate is None or self._last_stage else [gate]

    def finish(self) -> None:
        """Check that there were places, and the mask against their number.

        Raises:
            ValueError: there were none, or the mask has another length.
        """
        if self.gate is not None and not self.places:
            raise ValueError(
                f"this network has no place {self.placement!r} for gate {self.gate}: name another"
                f" placement of {', '.join(PLACEMENTS)}"
            )
        if self.mask is not None and len(self.mask) != self.places:
            raise ValueError(f"mask has {len(self.mask)} values, the network {self.places} places")

    def _build(self, channels: int, source_channels: int | None = None) -> Attention | None:
        if self.gate is None:
            return None
        self.places += 1
        if self.mask is not None and not any(self.mask[self.places - 1 : self.places]):
            return None
        place = Place(self._map_size, source_channels, self._leader)
        gate = create_gate_at(self.gate, channels, place, self.options)
        if self._leader is None:
            self._leader = gate
        return gate


class GatedConv2d(nn.Conv2d):
    """A convolution with a gate on its input, or none, under the keys of `nn.Conv2d`.

    Args:
        in_channels, channels: of its input and its output.
        size: side of the kernel, odd; at stride 1 the size of the feature map stays.
        stride: of the kernel.
        gates: builds the gate.
        bias: whether it has a bias.
    """

    gate_attribute = "input_gate"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        stride: int,
        gates: Placement,
        bias: bool = False,
    ):
        super().__init__(in_channels, channels, size, stride, size // 2, bias=bias)
        self.input_gate = gates.conv(in_channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Conv2d)
        """Return the convolution of the gated input."""
        return super().forward(input if self.input_gate is None else self.input_gate(input))


class Conv2dThenGate(nn.Conv2d):
    """A 3×3 convolution with a gate on its output, before the norm that follows.

    Args:
        in_channels, channels: of its input and its output.
        stride: of the kernel.
        gate: for the output.
        bias: whether it has a bias.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, gate: Attention | None, bias: bool
    ):
        super().__init__(in_channels, channels, 3, stride, 1, bias=bias)
        self.gate = gate

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Conv2d)
        """Return the gated output of the convolution."""
        out = super().forward(input)
        return out if self.gate is None else self.gate(out)


def build_conv(
    in_channels: int,
    channels: int,
    size: int,
    stride: int,
    gates: Placement,
    bias: bool = False,
    last: bool = False,
) -> nn.Conv2d:
    """Build a convolution with a gate where gates sit at convolutions, else PyTorch's own layer.

    Tools that look for convolutions, as quantisers do, know no other class. Arguments as those of
    `GatedConv2d`; `last` says whether it is the last 3×3 convolution of a block.
    """
    if gates.placement == "conv":
        return GatedConv2d(in_channels, channels, size, stride, gates, bias)
    if last and gates.placement == "conv3x3":
        return Conv2dThenGate(in_channels, channels, stride, gates.inner(channels), bias)
    return nn.Conv2d(in_channels, channels, size, stride, size // 2, bias=bias)
