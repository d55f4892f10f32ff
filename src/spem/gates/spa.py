"""SPA: a pyramid of average poolings as the descriptor."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from spem._checks import check_choice, check_normalises, check_whole, sizes_are_known
from spem._messages import shorten
from spem.functional import recalibrate
from spem.gates.attention import Attention, Place, multiply
from spem.gates.gate import hidden_width
from spem.gates.layers import BatchNorm2d, Conv2d, Linear
from spem.gates.regions import bin_means
from spem.kernels.reference import upcast

_VARIANTS = ("icme-a", "icme-b", "icme-c", "tmm-a", "tmm-b", "tmm-c")


class SPA(Attention):
    """Spatial Pyramid Attention, in the forms of both papers.

    p₁, p₂, p₄: adaptive average pools to 1×1, 2×2, 4×4. "icme": multiplier σ(W₂·relu(W₁·f)) of the
    three flattened and joined, f (N, 21C), without biases. "tmm": S = t₀·p₄ + t₁·up(p₂) + t₂·up(p₁)
    (nearest, t = 1 at the start), multiplier σ(conv(relu(BN(conv(S))))) on 4×4 positions, resized
    to the feature map (nearest): a gate of channels and positions.

    Type a reads the gated feature map itself. Types b and c read `source`, the block's input with
    `source_channels`: their `forward` takes both. b projects from the source's width; c first
    brings the source to C channels where its width differs.

    Args:
        channels: C.
        variant: "icme-a", "icme-b", "icme-c", "tmm-a", "tmm-b" or "tmm-c".
        source_channels: width of the block's input for types b and c; None for C.
        reduction: r; the hidden width is width // r.
        init: "paper", PyTorch's layers, or "identity", the last layer at 0 and gain 2.

    Raises:
        ValueError: an option is unknown or out of range, or source_channels is given for type a.

    Source: Guo, Ma et al., ICME 2020 ("icme"), and Ma, Guo et al., IEEE Transactions on Multimedia
        2021 ("tmm"). Which of the papers' topologies is which variant was inferred.
    """

    @classmethod
    def options_at(cls, place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, with the width of the block's input for types b and c."""
        if str(options.get("variant", "icme-a")).endswith("a"):
            return dict(options)
        return {**options, "source_channels": place.source_channels}

    def __init__(
        self,
        channels: int,
        *,
        variant: str = "icme-a",
        source_channels: int | None = None,
        reduction: int = 16,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_choice("variant", variant, _VARIANTS)
        paper, kind = variant.split("-")
        if source_channels is not None and kind == "a":
            raise ValueError(
                f"source_channels is {shorten(source_channels)}, but {variant} has no source"
            )
        width = channels if source_channels is None else source_channels
        check_whole("source_channels", width, most=2**14)
        self.variant, self.source_channels = variant, width
        self.needs_source = kind != "a"
        self.matcher: nn.Module | None = None
        if kind == "c" and width != channels:
            self.matcher, width = _build_matcher(width, channels, paper), channels
        build = _Joined if paper == "icme" else _Summed
        self.pyramid = build(width, channels, reduction)
        if init == "identity":
            self.start_at_identity(2, self.pyramid.last)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Args:
            x: (N, C, H, W).
            source: the block's input, (N, source_channels, H', W'), for types b and c.

        Raises:
            ValueError: x or source has other channels than the gate was built for, or the source is
                missing, or given to type a.
        """
        self.check_map(x)
        if (source is None) == self.needs_source:
            raise ValueError(
                f"{self.variant} {'needs' if self.needs_source else 'has no'} source: "
                "call gate(x, source) for types b and c, gate(x) for type a"
            )
        read = x if source is None else source
        other = sizes_are_known(read) and read.shape[1] != self.source_channels
        if read.dim() != 4 or other:
            raise ValueError(
                f"the gate reads {self.source_channels} channels, the source is {tuple(read.shape)}"
            )
        if self.matcher is not None:
            check_normalises("SPA", self.matcher, read)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(read) if self.matcher is None else self.matcher(upcast(read))
            multiplier = self.gain * self.pyramid(wide).sigmoid()
        if self.variant.startswith("icme"):  # of channels alone
            return recalibrate(x, self.report_multiplier(multiplier.flatten(1)))
        return multiply(x, interpolate(multiplier, x.shape[2:], mode="nearest"))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.channels}, variant={self.variant!r}, source={self.source_channels}"


class _Joined(nn.Module):
    """The logits of the first paper, (N, C, 1, 1)."""

    def __init__(self, width: int, channels: int, reduction: int):
        super().__init__()
        hidden = hidden_width(width, reduction)
        self.fc1 = Linear(21 * width, hidden, bias=False)
        self.last = Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        levels = [bin_means(x, side).flatten(1) for side in (1, 2, 4)]
        return self.last(self.fc1(torch.cat(levels, 1)).relu())[:, :, None, None]


class _Summed(nn.Module):
    """The logits of the second paper, (N, C, 4, 4)."""

    def __init__(self, width: int, channels: int, reduction: int):
        super().__init__()
        hidden = hidden_width(width, reduction)
        self.level_weight = nn.Parameter(torch.ones(3))
        self.conv = Conv2d(width, hidden, 1, bias=False)
        self.bn = BatchNorm2d(hidden)
        self.last = Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        levels = [bin_means(x, side) for side in (4, 2, 1)]
        pyramid = sum(
            weight * interpolate(level, (4, 4), mode="nearest")
            for weight, level in zip(self.level_weight.unbind(), levels, strict=True)
        )
        return self.last(self.bn(self.conv(cast(Tensor, pyramid))).relu())


def _build_matcher(width: int, channels: int, paper: str) -> nn.Sequential:
    layers: list[nn.Module] = [Conv2d(width, channels, 1, bias=False), BatchNorm2d(channels)]
    if paper == "icme":
        return nn.Sequential(*layers, nn.ReLU())
    layers += [nn.ReLU(), Conv2d(channels, channels, 1, bias=False), BatchNorm2d(channels)]
    return nn.Sequential(*layers)
