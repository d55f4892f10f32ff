"""Gates for inference, whose constants are computed beforehand."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spem.functional import STATISTICS, Pooled
from spem.gates.gate import Gate, degrees_of_freedom, present


class DeployedGate(Gate):
    """The multiplier gain · σ(z), z = Σ wₖ·pₖ + b, of pooled values pₖ, with constant wₖ and b.

    Args:
        gate: the trained gate that it replaces, which gives the channels, the gain, its dtype and
            its device.
        weights: wₖ by the name of the pooled value, each (C,) or of one element.
        constants: b, (C,), as "shift", and the further constants of a derived class. They become
            buffers of these names.
    """

    traceable = True
    # The pooled values that a derived class reads beside those with a weight.
    also_reads: tuple[str, ...] = ()
    shift: Tensor

    def __init__(self, gate: Gate, weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]):
        super().__init__(gate.channels)
        self.gain = gate.gain.clone()
        self.weighed = tuple(weights)
        self.statistics = tuple(n for n in STATISTICS if n in (*weights, *self.also_reads))
        expanded = {f"{name}_weight": w.expand(gate.channels) for name, w in weights.items()}
        for name, value in {**expanded, **constants}.items():
            self.register_buffer(name, value.detach().to(self.gain, copy=True).contiguous())
        self.eval()
        super().deployed()

    def multiplier(self, pooled: Pooled) -> Tensor:
        """Return gain · excite(pooled), (N, C); autocast leaves its operations in float32."""
        excited = self.excite(pooled)
        return self.report_multiplier(excited if self.unit_gain else self.gain * excited)

    def deployed(self) -> Gate:
        """Return this gate: nothing is left to compute beforehand."""
        return self

    def logits(self, pooled: Pooled) -> Tensor:
        """Return z, (N, C)."""
        z = self.shift
        for name in self.weighed:
            z = torch.addcmul(z, getattr(self, f"{name}_weight"), present(getattr(pooled, name)))
        return z

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        return self.logits(pooled).sigmoid()


class DeployedSPEM(DeployedGate):
    """SPEM with its reweighting: gain · σ(z)·r, or gain · σ(z·r), with r = σ(w·(max + min) + v).

    Without weights z is left out, and r or σ(r) is the multiplier.

    Args:
        gate, weights: see `DeployedGate`.
        constants: "shift" where there are weights, w as "sum_weight" and v as "sum_shift".

    Attributes:
        inside: whether r multiplies z inside of the sigmoid, as SPEM with form="figure" has it.
    """

    traceable = True
    also_reads = ("max", "min")
    sum_weight: Tensor
    sum_shift: Tensor
    inside: bool

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        total = present(pooled.max) + present(pooled.min)
        factor = torch.addcmul(self.sum_shift, self.sum_weight, total).sigmoid()
        if not self.weighed:
            return factor.sigmoid() if self.inside else factor
        z = self.logits(pooled)
        return (z * factor).sigmoid() if self.inside else z.sigmoid() * factor


class DeployedSRM(DeployedGate):
    """SRM with its norm folded: gain · σ(z + k·√(var + eps)), z of the mean, var unbiased.

    Args:
        gate, weights: see `DeployedGate`.
        constants: "shift", and k as "deviation_weight".

    Attributes:
        eps: of the gate.
    """

    traceable = True
    also_reads = ("var",)
    deviation_weight: Tensor
    eps: float

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        deviation = style_deviation(present(pooled.var), pooled.count, self.eps)
        return torch.addcmul(self.logits(pooled), self.deviation_weight, deviation).sigmoid()


def style_deviation(var: Tensor, count: int | Tensor, eps: float) -> Tensor:
    """Return SRM's deviation √(v + eps), v the unbiased variance, (N, C).

    Args:
        var: the biased variance, (N, C).
        count: positions of a feature map, a number or a tensor (); a single one has no unbiased
            variance, and v is 0 there.
        eps: added under the root.
    """
    if isinstance(count, Tensor) or count > 1:
        var = var * (count / degrees_of_freedom(count))
    return (var + eps).sqrt()
