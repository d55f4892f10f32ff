"""IE: a scale, a shift and a sigmoid for each channel."""

from typing import Unpack

import torch
from torch import Tensor, nn

from spem.functional import Pooled
from spem.gates.deployed import DeployedGate
from spem.gates.gate import Gate
from spem.gates.pooling import DescriptorGate, Pooling


class IE(DescriptorGate):
    """Instance Enhancement.

    With the descriptor u (the mean by default): multiplier σ(w·u + b), channel-wise. 2C parameters.

    Args:
        channels: C.
        init: "paper" (w = 0, b = −1, multiplier 0.269) or "identity" (b = 0, gain 2).
        **pooling: the descriptor u, see `DescriptorGate`.

    Raises:
        ValueError: a pooling option is not allowed.

    Source: the gate of Liang et al., "Instance Enhancement Batch Normalization", AAAI 2020 (arXiv
        1908.04008), as a module behind a norm: a definition that the parameter counts of later
        papers of the group suggest.
    """

    traceable = True

    def __init__(self, channels: int, *, init: str = "paper", **pooling: Unpack[Pooling]):
        super().__init__(channels, init=init, **pooling)
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.full((channels,), -1.0 if init == "paper" else 0.0))
        if init == "identity":
            self.gain.fill_(2)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        return (self.scale * self.descriptor(pooled) + self.shift).sigmoid()

    def deployed(self) -> Gate:
        """Return σ(Σ wₖ·pₖ + b) of the pooled values; a derived class keeps its `excite`."""
        if type(self) is not IE:
            return super().deployed()
        shares = self.descriptor_weights().items()
        weights = {name: share * self.scale.double() for name, share in shares}
        return DeployedGate(self, weights, {"shift": self.shift})
