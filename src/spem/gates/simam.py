"""SimAM: each position is weighed by its distance from the mean of its channel."""

import torch
from torch import Tensor

from spem._checks import check_finite
from spem.functional import Pooled
from spem.gates.attention import refuse_identity
from spem.gates.gate import degrees_of_freedom, present
from spem.gates.position import Logits, PositionGate


class SimAM(PositionGate):
    """Simple, parameter-free attention.

    With μ the mean of a channel, d = (x − μ)² and v = Σd / (HW − 1): multiplier
    σ(d / (4·(v + λ)) + ½), of every position. No parameters.

    A feature map of a single position has no unbiased variance: the authors' code returns NaN;
    here d is 0 and the multiplier σ(½).

    Args:
        channels: C.
        e_lambda: λ. The authors train ImageNet networks with 0.1; their value for CIFAR was not
            found.
        init: "paper"; the multipliers are at least σ(½) = 0.62 and follow the feature map, so no
            constant factor makes them 1 and there is no start at the identity.

    Raises:
        ValueError: e_lambda is below 1e-30, or init is "identity".

    Source: Yang, Zhang, Li and Xie, "SimAM: A Simple, Parameter-Free Attention Module for
        Convolutional Neural Networks", ICML 2021.
    """

    placement = "conv3x3"
    traceable = True
    statistics = ("mean", "var")

    def __init__(self, channels: int, *, e_lambda: float = 1e-4, init: str = "paper"):
        super().__init__(channels, init)
        refuse_identity("SimAM", init, "its multipliers follow the feature map from the start")
        check_finite("e_lambda", e_lambda)
        if e_lambda < 1e-30:
            raise ValueError(
                f"e_lambda is {e_lambda}, must be at least 1e-30: it is all that a channel without"
                " variance is divided by"
            )
        self.e_lambda = e_lambda

    def logits(self, pooled: Pooled) -> Logits:
        """Return None, ½ and 1 / (4·(v + λ))."""
        values = degrees_of_freedom(pooled.count)
        divisor = values if isinstance(values, Tensor) else max(values, 1)
        var = present(pooled.var) * (pooled.count / divisor)
        square = (4 * (var + self.e_lambda)).reciprocal()
        return None, torch.full_like(square, 0.5), square
