"""The replaceable pooling: one value a channel, mixed from the pooled statistics."""

from copy import deepcopy
from typing import Unpack

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_finite, check_module, is_number
from spem._messages import shorten
from spem.functional import Pooled
from spem.gates.gate import Gate, present
from spem.gates.regions import RegionGate, Regions
from spem.kernels.reference import upcast

_STATISTICS = {
    **dict.fromkeys(("avg", "srp"), ("mean",)),
    **dict.fromkeys(("max", "min", "fixed", "adaptive"), ("max", "min")),
}


class Pooling(Regions, total=False):
    """The options of the descriptor, which every `DescriptorGate` takes by keyword."""

    pool: str
    mix: float | None
    mixing: str
    alpha: float | None


class DescriptorGate(RegionGate):
    """A gate that reads one descriptor u a channel, whose pooling can be chosen.

    Args:
        channels: C.
        pool: "avg": u = mean; "max", "min": u = that extremum; "fixed": u = λ·max + (1−λ)·min with
            λ = `mix`; "adaptive": the same with a learned λ; "srp": in training the mean of random
            regions, in evaluation the mean.
        mix: λ in [0, 1] of pool="fixed".
        mixing: how "adaptive" keeps λ in [0, 1]. "squared": λ = p₀²/(p₀² + p₁²) of the parameter
            `pool_weight` (2,), both 1/2 at the start; only their ratio enters λ. "sigmoid": λ is
            the sigmoid of the scalar `pool_logit`, 0 at the start, which cannot run into 0/0.
        alpha: weight of the auxiliary loss α·(p₀² + p₁²) of mixing="squared", 0.1 by default.
        init: see `Attention`.
        **regions: rho, regions and per_channel of pool="srp", see `RegionGate`.

    Raises:
        ValueError: an option is unknown, out of range, or has no meaning beside the others.

    Source: the adaptive pooling of SPEM (Zhong, Wen and Qin, MMM 2023); "fixed" is its abstract's
        mixture λ·GMax + (1−λ)·GMin. "srp": see `SRP`.
    """

    def __init__(
        self,
        channels: int,
        *,
        pool: str = "avg",
        mix: float | None = None,
        mixing: str = "squared",
        alpha: float | None = None,
        init: str = "paper",
        **regions: Unpack[Regions],
    ):
        _check_mix(pool, mix, mixing, alpha)
        super().__init__(channels, pool=pool, init=init, **regions)
        self.pool, self.mix, self.mixing = pool, mix, mixing
        self.statistics = _STATISTICS[pool]
        self.alpha: float | None = None
        if pool == "adaptive" and mixing == "squared":
            self.alpha = 0.1 if alpha is None else alpha
            self.pool_weight = nn.Parameter(torch.full((2,), 0.5))
        elif pool == "adaptive":
            self.pool_logit = nn.Parameter(torch.zeros(()))

    def mixing_ratio(self) -> Tensor:
        """Return λ, the share of the maximum in the descriptor, of pool="adaptive"."""
        if self.mixing == "sigmoid":
            return upcast(self.pool_logit).sigmoid()
        squares = upcast(self.pool_weight).square()
        return squares[0] / squares.sum()

    def descriptor(self, pooled: Pooled) -> Tensor:
        """Return u, (N, C)."""
        if self.pool in ("avg", "srp"):
            return present(pooled.mean)
        if self.pool in ("max", "min"):
            return present(getattr(pooled, self.pool))
        ratio = self.mixing_ratio() if self.mix is None else self.mix
        return ratio * present(pooled.max) + (1 - ratio) * present(pooled.min)

    def descriptor_weights(self) -> dict[str, Tensor]:
        """Return the share of every statistic in u, by name, each of one element, in float64."""
        if self.pool not in ("fixed", "adaptive"):
            name = "mean" if self.pool in ("avg", "srp") else self.pool
            return {name: torch.ones_like(self.gain, dtype=torch.float64)}
        gate = deepcopy(self).double()
        ratio = gate.mixing_ratio() if self.mix is None else torch.full_like(gate.gain, self.mix)
        return {"max": ratio.detach(), "min": 1 - ratio.detach()}

    def deployed(self) -> Gate:
        """Fix the learned λ, and read no extremum beside the one that u is.

        A gate that reads more than its descriptor overrides this.
        """
        if type(self).descriptor is DescriptorGate.descriptor:
            weights = self.descriptor_weights()
            if self.pool == "adaptive":
                self.pool, self.mix, self.alpha = "fixed", float(weights["max"]), None
                for name in {"pool_weight", "pool_logit"} & dict(self.named_parameters()).keys():
                    delattr(self, name)
            if self.statistics == _STATISTICS[self.pool]:
                self.statistics = tuple(weights)
        return super().deployed()

    def auxiliary_loss(self) -> Tensor | None:
        """Return α·(p₀² + p₁²), a scalar, where the mixing is learned by squares."""
        return None if self.alpha is None else self.alpha * self.pool_weight.square().sum()

    def extra_repr(self) -> str:
        """Show the channels and the pooling."""
        shown = {"pool": self.pool, "mix": self.mix, "alpha": self.alpha, "rho": self.rho}
        if self.pool == "adaptive":
            shown["mixing"] = self.mixing
        options = (f"{key}={value!r}" for key, value in shown.items() if value is not None)
        return ", ".join([str(self.channels), *options])


def mixing_ratios(model: nn.Module) -> dict[str, float]:
    """Return the learned λ of every gate of a model that has one, by the gate's name, in order."""
    check_module(model)
    return {
        name: module.mixing_ratio().item()
        for name, module in model.named_modules()
        if isinstance(module, DescriptorGate) and module.pool == "adaptive"
    }


def _check_mix(pool: str, mix: float | None, mixing: str, alpha: float | None) -> None:
    check_choice("pool", pool, _STATISTICS)
    check_choice("mixing", mixing, ("squared", "sigmoid"))
    if (mix is None) == (pool == "fixed"):
        raise ValueError(
            f"mix is {shorten(mix)} with pool={shorten(pool)}: pool='fixed' needs it, no other has"
            " it"
        )
    if mix is not None and not (is_number(mix) and 0 <= mix <= 1):
        raise ValueError(f"mix is {shorten(mix)}, must lie in [0, 1]")
    if mixing == "sigmoid" and pool != "adaptive":
        raise ValueError(
            f"mixing='sigmoid' belongs to pool='adaptive', not to pool={shorten(pool)}"
        )
    if alpha is not None and (pool != "adaptive" or mixing != "squared"):
        raise ValueError(
            f"alpha is {shorten(alpha)}, but only pool='adaptive', mixing='squared' has it"
        )
    if alpha is not None:
        check_finite("alpha", alpha)
