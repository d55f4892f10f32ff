"""PSA: polarized self-attention of the channels and of the positions."""

import torch
from torch import Tensor, nn

from spem._checks import check_choice
from spem._messages import shorten
from spem.gates.attention import Attention, keep_start, multiply, refuse_identity
from spem.gates.layers import Conv2d, LayerNorm, Linear
from spem.kernels.reference import pool_mean, upcast


class PSA(Attention):
    """Polarized Self-Attention.

    K = C/2. Channels: a = softmax over the positions of w_q·x, z = Σ a·(V·x), (K,); multiplier
    σ(U·z), parallel with U (C, K), sequential with U = W₂·relu(LN(W₁·z + b₁)) + b₂, W₁ (K/4, K).
    Places: p = GAP(Q·x), (K,). Parallel: σ(softmax over the positions of p·(T·x)); sequential:
    σ(p·t), t the softmax of each channel of T·x over the positions. layout="parallel":
    y = x·m_c + x·m_p; "sequential": the places of x·m_c. 2C² + C and 27C²/16 + 19C/8 parameters.

    Ultralytics' and EPSANet's PSA are other modules.

    Args:
        channels: C, even; for "sequential" a multiple of 8.
        layout: "parallel" or "sequential".
        init: "paper" (parallel about 1, sequential about ¼), or with "sequential" "identity" (W₂,
            b₂ and Q at 0, gain 4).

    Raises:
        ValueError: the layout is unknown, the channels do not fit, or init is "identity" with
            "parallel".

    Source: Liu, Liu, Fan and Huang, "Polarized Self-Attention: Towards High-quality Pixel-wise
        Regression", 2021 (arXiv 2107.00782).
    """

    def __init__(self, channels: int, *, layout: str = "parallel", init: str = "paper"):
        super().__init__(channels, init)
        check_choice("layout of PSA", layout, ("parallel", "sequential"))
        step = 2 if layout == "parallel" else 8
        if channels % step:
            raise ValueError(
                f"channels is {shorten(channels)}, PSA in layout {layout!r} needs a multiple of"
                f" {step}"
            )
        self.layout, width = layout, channels // 2
        if layout == "parallel":
            reason = "its multiplier of a position depends on their number; 'sequential' has one"
            refuse_identity("PSA in layout 'parallel'", init, reason)
        self.channel_query = Conv2d(channels, 1, 1, bias=False)
        self.channel_value = Conv2d(channels, width, 1, bias=False)
        self.place_query = Linear(channels, width, bias=False)
        self.place_value = Conv2d(channels, width, 1, bias=False)
        for layer in (self.channel_query, self.channel_value, self.place_query, self.place_value):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            keep_start(layer)
        self.up = _build_up(channels, width, layout)
        if init == "identity":
            self.start_at_identity(4, self.up[-1], self.place_query)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            channel = self._weigh_channels(wide)
            if self.layout == "parallel":
                return multiply(x, self.gain * (channel + self._weigh_places(wide)))
            return multiply(x, self.gain * channel * self._weigh_places(wide * channel))

    def _weigh_channels(self, x: Tensor) -> Tensor:
        shares = self.channel_query(x).flatten(2).softmax(2)
        context = self.channel_value(x).flatten(2) @ shares.transpose(1, 2)
        return self.up(context.squeeze(2)).sigmoid()[:, :, None, None]

    def _weigh_places(self, x: Tensor) -> Tensor:
        # The mean of Q·x over the positions is Q of their mean.
        query = self.place_query(pool_mean(x))[:, None]
        values = self.place_value(x).flatten(2)
        if self.layout == "parallel":
            likeness = (query @ values).softmax(2)
        else:
            likeness = query @ values.softmax(2)
        return likeness.sigmoid().unflatten(2, x.shape[2:])


def _build_up(channels: int, width: int, layout: str) -> nn.Sequential:
    if layout == "parallel":
        return nn.Sequential(Linear(width, channels, bias=False))
    narrow = width // 4
    return nn.Sequential(
        Linear(width, narrow), LayerNorm(narrow), nn.ReLU(), Linear(narrow, channels)
    )
