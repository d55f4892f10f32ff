"""NAM: the scales of a norm say how much each channel counts."""

from torch import Tensor

from spem._checks import check_normalises
from spem.gates.attention import Attention, multiply, refuse_identity
from spem.gates.layers import BatchNorm2d
from spem.kernels.reference import upcast


class NAM(Attention):
    """Normalization-based Attention Module, its channel part.

    z = BN(x) by a norm of its own, with the scale γ; w_c = |γ_c| / Σ|γ|, which is not
    differentiated; y = x·σ(w_c·z). 2C parameters. Where all γ are 0, w is 0.

    Args:
        channels: C.
        init: "paper" (γ = 1, β = 0: w = 1/C, multiplier about ½); the multipliers follow the
            feature map, so there is no start at the identity.

    Raises:
        ValueError: init is "identity"; training with a single value to normalise.

    Source: Liu, Shao, Teng and Hoffmann, "NAM: Normalization-based Attention Module", NeurIPS 2021
        Workshops (arXiv 2111.12419). Its spatial part was never released.
    """

    family = "quadratic"

    def __init__(self, channels: int, *, init: str = "paper"):
        super().__init__(channels, init)
        refuse_identity("NAM", init, "its multipliers follow the feature map from the start")
        self.bn = BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        check_normalises("NAM", self, x)
        scale = upcast(self.bn.weight).detach().abs()
        total = scale.sum()
        weights = scale / total.where(total > 0, 1)
        return multiply(x, (weights[:, None, None] * self.bn(upcast(x))).sigmoid())
