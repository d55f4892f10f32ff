"""SEM: three excitations, each weighed by a switch."""

from typing import Unpack

import torch
from torch import Tensor, nn

from spem._checks import check_whole
from spem.functional import Pooled
from spem.gates.eca import channel_conv
from spem.gates.layers import Linear
from spem.gates.pooling import DescriptorGate, Pooling


class SEM(DescriptorGate):
    """Switchable Self-attention Module.

    With the descriptor u (the mean by default) and the switches a = σ(A·u + c), (N, 3): multiplier
    σ(a₁·o₁)·σ(a₂·o₂)·σ(a₃·o₃), where o₁ are the logits of SE, o₂ those of ECA and o₃ = w·u + b.
    The sigmoids of the switches are independent. 3C + 3 + (2CR + R + C) + k + 2C parameters.

    Args:
        channels: C.
        reduction: r of SE, R = max(1, round(C / r)).
        kernel_size: k of ECA; None for its rule.
        init: "paper" (w = 0, b = −1, PyTorch's layers), or "identity" (the last layers and b at 0,
            gain 8).
        **pooling: the descriptor u, see `DescriptorGate`.

    Raises:
        ValueError: an option is out of range.

    Source: Zhong, Wen and Qin, "Switchable Self-attention Module", 2022 (arXiv 2209.05680).
    """

    traceable = True

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        kernel_size: int | None = None,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        check_whole("reduction", reduction)
        width = max(1, round(channels / reduction))
        self.switch_fc = Linear(channels, 3)
        self.fc1 = Linear(channels, width)
        self.fc2 = Linear(width, channels)
        self.conv = channel_conv(channels, kernel_size)
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.full((channels,), -1.0 if init == "paper" else 0.0))
        if init == "identity":
            self.start_at_identity(8, self.fc2, self.conv)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        u = self.descriptor(pooled)
        logits = torch.stack(
            [
                self.fc2(self.fc1(u).relu()),
                self.conv(u[:, None]).squeeze(1),
                self.scale * u + self.shift,
            ]
        )
        switches = self.switch_fc(u).sigmoid().t()[..., None]
        first, second, third = (switches * logits).sigmoid().unbind()
        return first * second * third
