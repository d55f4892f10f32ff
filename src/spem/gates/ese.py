"""ESE: one fully connected layer without a bottleneck, and a hard sigmoid."""

from typing import Unpack

from torch import Tensor
from torch.nn.functional import relu6

from spem._checks import check_choice
from spem.functional import Pooled
from spem.gates.layers import Linear
from spem.gates.pooling import DescriptorGate, Pooling


class ESE(DescriptorGate):
    """Effective Squeeze-and-Excitation.

    With u the descriptor, by default the means of the channels: multiplier hsig(W·u + b), where
    hsig(v) = min(max(v + 3, 0), 6)/6. C² + C parameters.

    Args:
        channels: C.
        activation: "hard", or "sigmoid" for σ in the place of hsig, as Ultralytics'
            ChannelAttention has it.
        init: "paper", PyTorch's linear layer, or "identity", the layer at 0 and gain 2.
        **pooling: the descriptor, see `DescriptorGate`.

    Raises:
        ValueError: an option is unknown or not allowed.

    Source: Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020
        (arXiv 1911.06667).
    """

    traceable = True

    def __init__(
        self,
        channels: int,
        *,
        activation: str = "hard",
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        check_choice("activation of ESE", activation, ("hard", "sigmoid"))
        self.activation = activation
        self.fc = Linear(channels, channels)
        if init == "identity":
            self.start_at_identity(2, self.fc)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        logits = self.fc(self.descriptor(pooled))
        return relu6(logits + 3) / 6 if self.activation == "hard" else logits.sigmoid()
