"""HPDA: several local attentions that a diversity loss keeps apart."""

from typing import Any

import torch
from torch import Tensor, nn

from spem._checks import check_finite, check_normalises, check_whole
from spem.gates.attention import Attention, multiply
from spem.gates.gate import hidden_width
from spem.gates.layers import BatchNorm2d, Conv2d
from spem.kernels.reference import upcast
from spem.kernels.tracing import is_exported


class HPDA(Attention):
    """Local attention of Hierarchical Pyramid Diverse Attention.

    K local attentions Aₖ (N, 1, H, W) = σ(BN(conv(relu(BN(conv(x)))))) with 1×1 convolutions over
    C // reduction channels; y = x·maxₖ Aₖ. The auxiliary loss is the weight times the mean over the
    pairs i < j of Σₙ max(0, margin − ‖Aᵢ − Aⱼ‖_F / (H·W)) / (2N), of the last training forward.
    K·(CR + 4R + 3) parameters with R = C // reduction.

    Approximate: the paper's scales, projections and constants could not be read. One scale, the
    maximum over the attentions and the defaults are this library's definitions after reuses of the
    method elsewhere, and no parity is claimed.

    Args:
        channels: C.
        reduction: r.
        branches: K, from 2 to 256.
        margin: distance beyond which a pair adds nothing.
        weight: of the loss.
        init: "paper", PyTorch's layers, or "identity", the last norm at 0 and gain 2.

    Raises:
        ValueError: an option is out of range.

    Source: Wang, Wu, Zheng and Guo, "Hierarchical Pyramid Diverse Attention Networks for Face
        Recognition", CVPR 2020.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        branches: int = 5,
        margin: float = 1.0,
        weight: float = 0.5,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_whole("branches", branches, least=2, most=256)
        check_finite("margin", margin)
        check_finite("weight", weight)
        self.margin, self.weight = margin, weight
        width = hidden_width(channels, reduction)
        built = [_build_local_attention(channels, width) for _ in range(branches)]
        self.branches = nn.ModuleList(built)
        self._diversity: Tensor | None = None
        if init == "identity":
            self.start_at_identity(2, *(branch[-1] for branch in built))

    def attentions(self, x: Tensor) -> Tensor:
        """Return the local attentions, (N, K, H, W), in float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            wide = upcast(x)
            return torch.cat([branch(wide) for branch in self.branches], 1).sigmoid()

    def descriptors(self, x: Tensor) -> Tensor:
        """Return the mean of x under each attention, (N, K·C), in float32 or wider."""
        maps = self.attentions(x).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            return (maps @ upcast(x).flatten(2).transpose(1, 2) / maps.shape[2]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        check_normalises("HPDA", self, x)
        maps = self.attentions(x)
        # An exported program has no loss to hand out.
        learns = self.training and not is_exported()
        self._diversity = self.diversity_loss(maps) if learns else None
        return multiply(x, self.gain * maps.amax(1, keepdim=True))

    def diversity_loss(self, maps: Tensor) -> Tensor:
        """Return the unweighted loss of attentions (N, K, H, W)."""
        n, branches, h, w = maps.shape
        i, j = torch.triu_indices(branches, branches, 1, device=maps.device)
        distance = torch.linalg.vector_norm(maps[:, i] - maps[:, j], dim=(2, 3)) / (h * w)
        return (self.margin - distance).relu().mean(1).sum() / (2 * max(1, n))

    def auxiliary_loss(self) -> Tensor | None:
        """Return weight · diversity loss of the last training forward; None before one."""
        return None if self._diversity is None else self.weight * self._diversity

    def __getstate__(self) -> dict[str, Any]:
        # The loss belongs to the graph of its forward, which cannot be copied.
        return {**self.__dict__, "_diversity": None}


def _build_local_attention(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(channels, width, 1),
        BatchNorm2d(width),
        nn.ReLU(),
        Conv2d(width, 1, 1),
        BatchNorm2d(1),
    )
