"""GC: one context vector for all positions, transformed and added to each (GCNet)."""

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_finite
from spem.functional import Pooled
from spem.gates.attention import keep_start
from spem.gates.gate import Gate, hidden_width, present
from spem.gates.layers import Conv2d, LayerNorm, Linear
from spem.kernels.reference import upcast


class GC(Gate):
    """Global Context block.

    The context c (N, C): with pooling="att" the sum of all positions, weighed by the softmax over
    the positions of w·x + b; with "avg" the mean of each channel. T(c) = W₂·relu(LN(W₁·c + b₁)) +
    b₂, the norm over the R = C // reduction values of an image. fusion="add": y = x + T(c); "mul":
    y = x·σ(T(c)); "both": y = x·σ(T₁(c)) + T₂(c). 2CR + 3R + C parameters for each T, and C + 1 for
    the mask of "att".

    Args:
        channels: C.
        reduction: r; the authors publish networks with 16 and 4.
        pooling: "att" or "avg".
        fusion: "add", "mul" or "both".
        eps: of the norm.
        init: "paper" (the mask from N(0, 2/C), the last layer of T at 0: "add" starts as the
            identity, "mul" at ½) or "identity" (gain 2 with "mul" and "both").

    Raises:
        ValueError: an option is unknown or out of range.

    Source: Cao, Xu, Lin, Wei and Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks
        and Beyond", ICCV Workshops 2019 (arXiv 1904.11492).
    """

    traceable = True
    statistics = ("mean",)

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pooling: str = "att",
        fusion: str = "add",
        eps: float = 1e-5,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        width = hidden_width(channels, reduction)
        check_choice("pooling of GC", pooling, ("att", "avg"))
        check_choice("fusion of GC", fusion, ("add", "mul", "both"))
        check_finite("eps", eps)
        self.pooling, self.fusion = pooling, fusion
        self.reads_statistics_only = pooling == "avg"
        self.family = "pooled" if self.reads_statistics_only else "map"
        self.mask = Conv2d(channels, 1, 1) if pooling == "att" else None
        self.mul = _Transform(channels, width, eps) if fusion != "add" else None
        self.add = _Transform(channels, width, eps) if fusion != "mul" else None
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
            keep_start(self.mask)
            nn.init.constant_(self.mask.get_parameter("bias"), 0)
        if init == "identity" and fusion != "add":
            self.gain.fill_(2)

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the context in the place of the means."""
        if self.mask is None:
            return super().pool_map(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            weights = self.mask(wide).flatten(2).softmax(2)
            context = (wide.flatten(2) @ weights.transpose(1, 2)).squeeze(2)
        return Pooled(context, None, None, None, 1)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C) or, if they are all 1, (1, C)."""
        context = present(pooled.mean)
        return torch.ones_like(context[:1]) if self.mul is None else self.mul(context).sigmoid()

    def offset(self, pooled: Pooled) -> Tensor | None:
        """Return what is added to every position, (N, C); None with fusion="mul"."""
        return None if self.add is None else self.add(present(pooled.mean))


class _Transform(nn.Module):
    def __init__(self, channels: int, width: int, eps: float):
        super().__init__()
        self.fc1 = Linear(channels, width)
        self.norm = LayerNorm(width, eps)
        self.fc2 = Linear(width, channels)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, context: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(context)).relu())
