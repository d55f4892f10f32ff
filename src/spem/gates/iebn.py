"""IEBN: instance enhancement inside batch normalisation."""

from torch import Tensor

from spem.functional import Pooled
from spem.gates.gate import Transform
from spem.gates.ie import IE


class IEBN(IE):
    """Instance Enhancement Batch Normalization, as the gate of a norm.

    In `GatedBatchNorm2d`: y = x̂·(γ·a) + β with a = σ(w·u + b), where u is the descriptor of the
    norm's input (the mean by default) and β stays unscaled. Applied to a feature map without a norm
    it is `IE`. In `create_model` it sits on the stem's norm and on all norms of the blocks, not of
    the shortcuts. 2C parameters.

    Args:
        channels: C.
        init: "paper" (w = 0, b = −1, multiplier 0.269) or "identity" (b = 0, gain 2).
        **pooling: the descriptor u, see `DescriptorGate`.

    Raises:
        ValueError: a pooling option is not allowed.

    Source: Liang, Huang, Liang and Yang, "Instance Enhancement Batch Normalization", AAAI 2020
        (arXiv 1908.04008).
    """

    traceable = True
    reads_input = True
    placement = "norm"

    def coefficients(self, pooled: Pooled, scale: Tensor, shift: Tensor, bias: Tensor) -> Transform:
        """Return a and b, (N, C), such that the norm of x is a·x + b."""
        multiplier = self.multiplier(pooled)
        return multiplier * scale, multiplier * (shift - bias) + bias, None
