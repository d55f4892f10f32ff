"""DANet: every position attends to all positions, every channel to all channels."""

import torch
from torch import Tensor, nn

from spem._checks import check_choice
from spem.gates.attention import Attention
from spem.gates.layers import Conv2d
from spem.kernels.reference import upcast


class DANet(Attention):
    """Dual Attention: the position and the channel module, or their sum.

    Position: Q, K (C/8, L) and V (C, L) by 1×1 convolutions, S = softmax of the rows of QᵀK,
    y = γ·(V Sᵀ) + x. Channel: E = X Xᵀ, S = softmax of rowmax(E) − E, y = γ·(S X) + x. γ starts at
    0, so both start as the identity. 1.25C² + 1.25C + 1 and 1 parameters.

    "both" adds the two and takes x once, so it starts as the identity too. The segmentation head of
    the authors, which adds convolutions to each module, is not part of it.

    Args:
        channels: C, at least 8 with the position module.
        attention: "position", "channel" or "both".
        init: "paper"; it is the identity, as is "identity".

    Raises:
        ValueError: the attention is unknown, or the channels are too few.

    Source: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019 (arXiv
        1809.02983).
    """

    def __init__(self, channels: int, *, attention: str = "both", init: str = "paper"):
        super().__init__(channels, init)
        check_choice("attention", attention, ("position", "channel", "both"))
        if attention != "channel" and channels < 8:
            raise ValueError(f"channels is {channels}, the position module needs at least 8")
        self.attention = attention
        self.position = _Position(channels) if attention != "channel" else None
        self.channel = _Channel() if attention != "position" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map plus what it attends to, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            y = wide = upcast(x)
            for module in (self.position, self.channel):
                y = y if module is None else y + module(wide)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.channels}, attention={self.attention!r}"


class _Position(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.query = Conv2d(channels, channels // 8, 1)
        self.key = Conv2d(channels, channels // 8, 1)
        self.value = Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        return (self.gamma * (value @ weights.transpose(1, 2))).reshape(x.shape)


class _Channel(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        energy = flat @ flat.transpose(1, 2)
        # softmax subtracts the row's maximum itself: the sign alone turns likeness into unlikeness.
        weights = (-energy).softmax(-1)
        return (self.gamma * (weights @ flat)).reshape(x.shape)
