"""SE: squeeze-and-excitation, a bottleneck of two fully connected layers."""

from typing import Unpack

from torch import Tensor

from spem._checks import check_switch, check_whole
from spem.functional import Pooled
from spem.gates.layers import Linear
from spem.gates.pooling import DescriptorGate, Pooling


class SE(DescriptorGate):
    """Squeeze-and-Excitation: two linear layers turn the means of all channels into multipliers.

    Squeeze: the descriptor u (N, C), by default the mean of each channel of the feature map x.
    Excitation: the multipliers m = σ(W₂·relu(W₁·u + b₁) + b₂), (N, C), with W₁ (R, C), W₂ (C, R)
    and R = max(1, round(C / reduction)). Recalibration: y = gain·x·m, channel by channel; gain
    is 1, or 2 for init="identity", whose m starts at σ(0) = ½. Only the excitation is written here:
    the base class pools x before it and recalibrates x after it. 2CR parameters, and R + C with the
    biases.

    Args:
        channels: C.
        reduction: r; the hidden width is R = max(1, round(C / r)).
        bias: whether both layers have a bias, as in the CIFAR networks of SPEM's authors.
        init: "paper", PyTorch's linear layers, or "identity", the second layer at 0 and gain 2.
        **pooling: the descriptor u, see `DescriptorGate`.

    Raises:
        ValueError: an option is unknown, out of range, or has no meaning beside the others.

    Source: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv 1709.01507).
    """

    traceable = True  # the excitation can be compiled, see `Gate`

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        bias: bool = True,
        init: str = "paper",
        **pooling: Unpack[Pooling],
    ):
        super().__init__(channels, init=init, **pooling)
        check_whole("reduction", reduction)
        check_switch("bias", bias)
        width = max(1, round(channels / reduction))
        self.fc1 = Linear(channels, width, bias)
        self.fc2 = Linear(width, channels, bias)
        if init == "identity":
            self.start_at_identity(2, self.fc2)

    def logits(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the sigmoid, (N, C)."""
        return self.fc2(self.fc1(self.descriptor(pooled)).relu())

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        return self.logits(pooled).sigmoid()
