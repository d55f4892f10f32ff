"""SPEM: adaptive max-min pooling, excitation and reweighting, all channel-wise."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_switch
from spem.functional import Pooled
from spem.gates.deployed import DeployedGate, DeployedSPEM
from spem.gates.gate import Gate, present
from spem.gates.pooling import DescriptorGate


class SPEM(DescriptorGate):
    """Self-adaptive Pooling Enhanced Attention Module.

    With m the maximum and q the minimum of a channel of the feature map, u their mixture, and
    parameters for every channel:

        form="code":    e = σ(w₁·(w₂·u + b₂) + b₁),  r = σ(w₂·(m + q) + 2·b₂),  multiplier e·r
        form="figure":  v₁ = w₁·u + b₁,  v₂ = σ(w₂·(m + q) + 2·b₂),  multiplier σ(v₁·v₂)

    "code" is what the released code computes, "figure" what its README draws. 4C + 2 parameters.

    Args:
        channels: C.
        pool, mix, mixing, alpha: the descriptor u, see `DescriptorGate`.
        form: "code" or "figure".
        excitation: False leaves e (v₁) out, with w₁ and b₁.
        reweighting: False leaves r (v₂) out, with w₂ and b₂. Without either the multiplier is σ(u).
        init: "paper" starts at the authors' σ(−1)·σ(−2) = 0.032; "identity" at exactly 1, the same
            formula times the buffer `gain`, for insertion into a trained network; form="figure"
            without excitation, of gain 1 / σ(σ(0)), is exact only in the dtype it was built in.

    Raises:
        ValueError: an option is unknown, out of range, or has no meaning beside the others.

    Source: Zhong, Wen and Qin, "SPEM", MMM 2023 (arXiv 2208.10322). The paper's ablations have no
        published code: the switches are this library's definitions, which reduce to the code.

    Example:
        >>> gate = SPEM(8)
        >>> gate(torch.ones(2, 8, 4, 4))[0, 0, 0, 0].item()  # σ(−1)·σ(−2)
        0.03205...
    """

    traceable = True

    def __init__(
        self,
        channels: int,
        *,
        pool: str = "adaptive",
        mix: float | None = None,
        mixing: str = "squared",
        alpha: float | None = None,
        form: str = "code",
        excitation: bool = True,
        reweighting: bool = True,
        init: str = "paper",
    ):
        super().__init__(channels, pool=pool, mix=mix, mixing=mixing, alpha=alpha, init=init)
        check_choice("form", form, ("code", "figure"))
        check_switch("excitation", excitation)
        check_switch("reweighting", reweighting)
        self.form, self.excitation, self.reweighting = form, excitation, reweighting
        if reweighting:
            self.statistics = tuple(dict.fromkeys((*self.statistics, "max", "min")))
        start = -1.0 if init == "paper" else 0.0
        if excitation:
            self.excitation_scale = nn.Parameter(torch.zeros(channels))
            self.excitation_shift = nn.Parameter(torch.full((channels,), start))
        if reweighting:
            self.reweight_scale = nn.Parameter(torch.zeros(channels))
            self.reweight_shift = nn.Parameter(torch.full((channels,), start))
        if init == "identity":
            self.gain.copy_(self._identity_gain())

    def _identity_gain(self) -> Tensor:
        if not (self.excitation or self.reweighting):
            raise ValueError(
                "init='identity' needs excitation or reweighting: without both the multiplier "
                "σ(u) follows the input from the start"
            )
        nothing = torch.zeros(1, self.channels)
        pooled = Pooled(nothing, nothing, nothing, nothing, count=1)
        with torch.no_grad():
            start = self.excite(pooled)[0, 0]
        gain = 1 / start
        # One float up or down where rounding left the product beside 1 (σ(σ(0)) needs it).
        return torch.nextafter(gain, gain + (1 - gain * start).sign())

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C), by the equations of the class."""
        u = self.descriptor(pooled)
        code = self.form == "code"
        if not self.reweighting:
            if self.excitation:
                u = self.excitation_scale * u + self.excitation_shift
            return u.sigmoid()
        total = present(pooled.max) + present(pooled.min)
        weight = (self.reweight_scale * total + 2 * self.reweight_shift).sigmoid()
        if not self.excitation:
            return weight if code else weight.sigmoid()
        if code:
            u = self.reweight_scale * u + self.reweight_shift
        excited = self.excitation_scale * u + self.excitation_shift
        return excited.sigmoid() * weight if code else (excited * weight).sigmoid()

    def deployed(self) -> Gate:
        """Return the same with its constants folded: five vectors (A, B, D, E, F) for "code".

        e = σ(A·m + B·q + D) with A = w₁w₂λ, B = w₁w₂(1 − λ), D = w₁b₂ + b₁ for form="code", and
        w₁λ, w₁(1 − λ), b₁ where no w₂ is inside; r = σ(E·(m + q) + F) with E = w₂, F = 2·b₂.
        """
        if type(self) is not SPEM:
            return Gate.deployed(self)
        if not (self.excitation or self.reweighting):
            return super().deployed()
        gate = deepcopy(self).double()
        weights, constants = {}, {}
        if self.excitation:
            scale, shift = gate.excitation_scale, gate.excitation_shift
            if self.form == "code" and self.reweighting:
                scale, shift = scale * gate.reweight_scale, shift + scale * gate.reweight_shift
            weights = {name: share * scale for name, share in gate.descriptor_weights().items()}
            constants = {"shift": shift}
        if not self.reweighting:
            return DeployedGate(self, weights, constants)
        constants |= {"sum_weight": gate.reweight_scale, "sum_shift": 2 * gate.reweight_shift}
        deployed = DeployedSPEM(self, weights, constants)
        deployed.inside = self.form == "figure"
        return deployed

    def extra_repr(self) -> str:
        """Show all options."""
        switches = (
            f"form={self.form!r}, excitation={self.excitation}, reweighting={self.reweighting}"
        )
        return f"{super().extra_repr()}, {switches}"
