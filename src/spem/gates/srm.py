"""SRM: the style of a channel, its mean and deviation, weighed and normalised over the batch."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from spem._checks import check_finite, sizes_are_known
from spem.functional import Pooled
from spem.gates.deployed import DeployedSRM, style_deviation
from spem.gates.gate import Gate, present
from spem.gates.layers import BatchNorm1d


class SRM(Gate):
    """Style-based Recalibration Module.

    With μ the mean and s = √(v + eps) the deviation of a channel, v its unbiased variance:
    multiplier σ(BN(k₀·μ + k₁·s)), BN over the images of the batch. 4C parameters.

    A feature map of a single position has no unbiased variance: the authors' code returns NaN; here
    v is 0 there.

    Args:
        channels: C.
        eps: added to the variance under the root.
        init: "paper" (k = 0, multiplier ½) or "identity", the same with gain 2.

    Raises:
        ValueError: eps is negative; in training, a batch of a single image.

    Source: Lee, Kim and Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural
        Networks", ICCV 2019 (arXiv 1903.10829). The authors train all four tensors without decay.
    """

    traceable = True
    statistics = ("mean", "var")
    no_weight_decay = ("style_weight", "bn.weight", "bn.bias")
    retired_options = ("parity",)

    def __init__(self, channels: int, *, eps: float = 1e-5, init: str = "paper"):
        super().__init__(channels, init)
        check_finite("eps", eps)
        self.eps = eps
        self.style_weight = nn.Parameter(torch.zeros(channels, 2))
        self.bn = BatchNorm1d(channels)
        if init == "identity":
            self.gain.fill_(2)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        mean, var = present(pooled.mean), present(pooled.var)
        if self.training and sizes_are_known(mean) and mean.shape[0] == 1:
            raise ValueError("SRM normalises over the batch: training needs at least 2 images")
        deviation = style_deviation(var, pooled.count, self.eps)
        weight = self.style_weight.to(mean.dtype)
        style = weight[:, 0] * mean + weight[:, 1] * deviation
        return self.bn(style).sigmoid()

    def deployed(self) -> Gate:
        """Fold the running statistics of the norm into the weights."""
        if type(self) is not SRM:
            return super().deployed()
        gate = deepcopy(self).double()
        norm = gate.bn
        scale = norm.weight * (present(norm.running_var) + norm.eps).rsqrt()
        mean, deviation = (gate.style_weight * scale[:, None]).unbind(1)
        shift = norm.bias - present(norm.running_mean) * scale
        constants = {"shift": shift, "deviation_weight": deviation}
        deployed = DeployedSRM(self, {"mean": mean}, constants)
        deployed.eps = self.eps
        return deployed
