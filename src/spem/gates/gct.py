"""GCT: norms of the maps that compete across the channels."""

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_finite, check_switch
from spem.functional import Pooled
from spem.gates.gate import Gate, present
from spem.kernels.reference import upcast


class GCT(Gate):
    """Gated Channel Transformation.

    mode="l2": s = α·√(Σ x² + eps), n = γ / √(mean_c(s²) + eps); mode="l1": s = α·Σ|x|,
    n = γ / (mean_c|s| + eps), Σ over the positions. Multiplier 1 + tanh(s·n + β). 3C parameters.

    Args:
        channels: C.
        mode: "l2" or "l1".
        after_relu: for "l1": the input is known not to be negative, so Σ|x| is Σx.
        eps: see the equations.
        init: "paper" (α = 1, γ = β = 0); it is the identity, as is "identity".

    Raises:
        ValueError: the mode is unknown, eps is negative, or after_relu stands beside "l2".

    Source: Yang, Zhu, Wu and Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020
        (arXiv 1909.11519). The authors train β without decay.
    """

    traceable = True
    no_weight_decay = ("beta",)

    def __init__(
        self,
        channels: int,
        *,
        mode: str = "l2",
        after_relu: bool = False,
        eps: float = 1e-5,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_choice("mode", mode, ("l1", "l2"))
        check_switch("after_relu", after_relu)
        if after_relu and mode != "l1":
            raise ValueError("after_relu belongs to mode='l1': the squares of 'l2' have no sign")
        check_finite("eps", eps)
        self.mode, self.after_relu, self.eps = mode, after_relu, eps
        self.statistics = ("mean", "var") if mode == "l2" else ("mean",)
        self.reads_statistics_only = mode == "l2" or after_relu
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the means of the absolute values where mode="l1" needs them."""
        return super().pool_map(x if self.reads_statistics_only else upcast(x).abs())

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        mean = present(pooled.mean)
        if self.mode == "l1":
            norm = self.alpha * pooled.count * mean
            scale = self.gamma / (norm.abs().mean(1, keepdim=True) + self.eps)
        else:
            squares = pooled.count * (present(pooled.var) + mean.square())
            norm = self.alpha * (squares + self.eps).sqrt()
            scale = self.gamma * (norm.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return 1 + (norm * scale + self.beta).tanh()
