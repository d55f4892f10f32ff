"""LSAS: attention on attention, the logits are scaled and shifted again and again."""

from typing import Unpack

import torch
from torch import Tensor, nn

from spem._checks import check_whole
from spem.functional import Pooled
from spem.gates.pooling import Pooling
from spem.gates.se import SE


class LSAS(SE):
    """Lightweight Sub-attention Strategy.

    With s₀ the logits of SE and sⱼ = wⱼ·sⱼ₋₁ + bⱼ, channel-wise: multiplier Π σ(sⱼ), j = 0 … K.
    The parameters of SE and 2CK more. In `create_model` it sits in the last stage only.

    Args:
        channels: C.
        order: K, from 0 to 100; 0 is SE.
        reduction, bias: see `SE`.
        init: "paper" (w = ½, b = −½), or "identity" (SE's second layer and b at 0, gain 2^(K+1)).
        **pooling: the descriptor, see `DescriptorGate`.

    Raises:
        ValueError: an option is out of range.

    Source: Zhong, Wen, Qin, Chen and Huang, "LSAS: Lightweight Sub-attention Strategy for
        Alleviating Attention Bias Problem", ICME 2023 (arXiv 2305.05200).
    """

    traceable = True
    placement = "last-stage"

    def __init__(
        self,
        channels: int,
        *,
        order: int = 1,
        reduction: int = 16,
        bias: bool = True,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, reduction=reduction, bias=bias, init=init, **pooling)
        check_whole("order", order, least=0, most=100)
        start = -0.5 if init == "paper" else 0.0
        self.sub_scale = nn.ParameterList(torch.full((channels,), 0.5) for _ in range(order))
        self.sub_shift = nn.ParameterList(torch.full((channels,), start) for _ in range(order))
        if init == "identity":
            self.gain.fill_(2 ** (order + 1))

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        logits = self.logits(pooled)
        multiplier = logits.sigmoid()
        for scale, shift in zip(self.sub_scale, self.sub_shift, strict=True):
            logits = scale * logits + shift
            multiplier = multiplier * logits.sigmoid()
        return multiplier
