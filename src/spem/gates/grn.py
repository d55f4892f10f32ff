"""GRN: the norm of a channel over the mean norm of all, as in ConvNeXt V2."""

import torch
from torch import Tensor, nn

from spem._checks import check_finite
from spem.functional import Pooled
from spem.gates.gate import Gate, measure_length
from spem.kernels.reference import upcast


class GRN(Gate):
    """Global Response Normalization.

    With q = √Σx² over the positions of a channel and n = q / (mean_c q + eps):
    y = x·(1 + γ·n) + β. 2C parameters.

    Args:
        channels: C.
        eps: added to the mean of the norms, not under a root.
        init: "paper" (γ = β = 0); it is the identity, as is "identity".

    Raises:
        ValueError: eps is negative.

    Source: Woo et al., "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
        CVPR 2023 (arXiv 2301.00808). The paper divides by the sum of the norms, the authors' code
        and this class by their mean.
    """

    traceable = True
    statistics = ("mean", "var")

    def __init__(self, channels: int, *, eps: float = 1e-6, init: str = "paper"):
        super().__init__(channels, init)
        check_finite("eps", eps)
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers, (N, C)."""
        length = measure_length(pooled)
        return 1 + self.gamma * (length / (length.mean(1, keepdim=True) + self.eps))

    def offset(self, pooled: Pooled) -> Tensor:
        """Return β, (1, C)."""
        return upcast(self.beta)[None]
