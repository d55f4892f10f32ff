"""Gates for inference, whose constants are computed beforehand."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spem.functional import STATISTICS, Pooled
from spem.gates.gate import Gate, present


class DeployedGate(Gate):
    """The multiplier gain · σ(Σ wₖ·pₖ + b) of pooled values pₖ, with constant wₖ and b.

    Args:
        gate: what it stands for, which gives the channels, the gain, its dtype and its device.
        weights: wₖ by the statistic that it weighs, each (C,) or of one element.
        shift: b, (C,).
    """

    traceable = True
    shift: Tensor

    def __init__(self, gate: Gate, weights: Mapping[str, Tensor], shift: Tensor):
        super().__init__(gate.channels)
        self.gain = gate.gain.clone()
        self.statistics = tuple(weights)
        self._weighed = [(name, f"{name}_weight") for name in weights]
        for (_, buffer), weight in zip(self._weighed, weights.values(), strict=True):
            self.keep(buffer, weight.expand(gate.channels))
        self.keep("shift", shift)
        self.eval()
        super().deployed()

    def keep(self, name: str, value: Tensor) -> None:
        """Store a constant as a buffer in the dtype and on the device of the gain."""
        self.register_buffer(name, value.detach().to(self.gain, copy=True).contiguous())

    def multiplier(self, pooled: Pooled) -> Tensor:
        """Return gain · excite(pooled), (N, C); autocast leaves its operations in float32."""
        return self.excite(pooled) if self.unit_gain else self.gain * self.excite(pooled)

    def deployed(self) -> Gate:
        """Return this gate: nothing is left to fold."""
        return self

    def logits(self, pooled: Pooled) -> Tensor:
        """Return Σ wₖ·pₖ + b, (N, C)."""
        z = self.shift
        for name, buffer in self._weighed:
            z = torch.addcmul(z, getattr(self, buffer), present(getattr(pooled, name)))
        return z

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers, (N, C)."""
        return self.logits(pooled).sigmoid()


class DeployedSPEM(DeployedGate):
    """SPEM with its reweighting: gain · σ(z)·σ(w·(max + min) + b), or gain · σ(z·σ(…)).

    z is the sum of `DeployedGate`; five vectors with both parts of the gate, two without the
    excitation.

    Args:
        gate, weights, shift: see `DeployedGate`; without weights z is left out.
        sum_weight: w, (C,).
        sum_shift: b, (C,).
        inside: whether z multiplies the second sigmoid inside of the first.
    """

    traceable = True
    sum_weight: Tensor
    sum_shift: Tensor

    def __init__(
        self,
        gate: Gate,
        weights: Mapping[str, Tensor],
        shift: Tensor,
        *,
        sum_weight: Tensor,
        sum_shift: Tensor,
        inside: bool,
    ):
        super().__init__(gate, weights, shift)
        self.inside = inside
        self.statistics = tuple(name for name in STATISTICS if name in {*weights, "max", "min"})
        self.keep("sum_weight", sum_weight)
        self.keep("sum_shift", sum_shift)
        if not weights:
            del self.shift

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers, (N, C)."""
        total = present(pooled.max) + present(pooled.min)
        factor = torch.addcmul(self.sum_shift, self.sum_weight, total).sigmoid()
        if not self._weighed:
            return factor.sigmoid() if self.inside else factor
        z = self.logits(pooled)
        return (z * factor).sigmoid() if self.inside else z.sigmoid() * factor


class DeployedSRM(DeployedGate):
    """SRM with its norm folded: gain · σ(w·mean + k·√(var + eps) + b), var unbiased.

    Args:
        gate, weights, shift: see `DeployedGate`; the weight is that of the mean.
        deviation_weight: k, (C,).
        eps: of the gate.
    """

    traceable = True
    deviation_weight: Tensor

    def __init__(
        self,
        gate: Gate,
        weights: Mapping[str, Tensor],
        shift: Tensor,
        *,
        deviation_weight: Tensor,
        eps: float,
    ):
        super().__init__(gate, weights, shift)
        self.statistics = ("mean", "var")
        self.eps = eps
        self.keep("deviation_weight", deviation_weight)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers, (N, C)."""
        deviation = style_deviation(present(pooled.var), pooled.count, self.eps)
        return torch.addcmul(self.logits(pooled), self.deviation_weight, deviation).sigmoid()


def style_deviation(var: Tensor, count: int | Tensor, eps: float) -> Tensor:
    """Return SRM's deviation √(v + eps), v the unbiased variance, (N, C).

    Args:
        var: the biased variance, (N, C).
        count: positions of a map, a tensor () only if more than one; a single one has no unbiased
            variance, and v is 0 there.
        eps: added under the root.
    """
    if isinstance(count, Tensor) or count > 1:
        var = var * (count / (count - 1))
    return (var + eps).sqrt()
