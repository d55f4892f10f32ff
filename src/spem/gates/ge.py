"""GE: gather from the neighbourhood of each position, excite by the sigmoid (Gather-Excite)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from spem._checks import check_choice, check_whole, sizes_are_known
from spem.functional import Pooled
from spem.gates.attention import Place, multiply, refuse_identity
from spem.gates.gate import Gate, hidden_width, present
from spem.gates.layers import BatchNorm1d, Linear
from spem.kernels.reference import upcast


class GE(Gate):
    """Gather-Excite.

    variant="minus": y = x·σ(q), q the mean of each channel, or with an extent e the average over
    windows of 2e − 1 positions at a stride of e, brought back to H×W by nearest neighbours; no
    parameters. "theta": q = BN(Σ D·x), D (C, H, W) a kernel as large as the feature map; "plus":
    the same, then σ(W₂·relu(W₁·relu(q) + b₁) + b₂). C·H·W + 2C parameters, for "plus" 2CR + R + C
    more.

    Args:
        channels: C.
        variant: "minus", "theta" or "plus".
        extent: e of "minus", at most 256; None gathers all positions.
        map_size: side of the feature maps, for "theta" and "plus"; `create_model` knows it.
        reduction: r of "plus"; R = C // r.
        init: "paper", or "identity" of "theta" (the scale of the norm 0, gain 2) and "plus" (W₂ at
            0, gain 2); the multipliers of "minus" follow the feature map and have none.

    Raises:
        ValueError: an option is unknown, out of range, missing, or has no meaning beside others.

    Source: Hu, Shen, Albanie, Sun and Vedaldi, "Gather-Excite: Exploiting Feature Context in
        Convolutional Neural Networks", NeurIPS 2018 (arXiv 1810.12348). There is no code of the
        authors that runs for "theta" and "plus"; the extents of "minus" follow timm.
    """

    traceable = True
    statistics = ("mean",)

    @classmethod
    def options_at(cls, place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, with the size of the feature map where a kernel needs it."""
        sized = options.get("variant", "minus") != "minus" and place.map_size is not None
        return {"map_size": place.map_size, **options} if sized else dict(options)

    def __init__(
        self,
        channels: int,
        *,
        variant: str = "minus",
        extent: int | None = None,
        map_size: int | None = None,
        reduction: int = 16,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        _check_options(variant, extent, map_size)
        check_whole("reduction", reduction)
        if variant == "minus":
            reason = "the multipliers of variant 'minus' follow the feature map from the start"
            refuse_identity("GE", init, reason)
        self.variant, self.extent, self.map_size = variant, extent, map_size
        self.reads_statistics_only = variant == "minus" and extent is None
        self.family = "pooled" if self.reads_statistics_only else "map"
        self.bn = self.fc1 = self.fc2 = None
        if map_size is not None:
            self.kernel = nn.Parameter(torch.empty(channels, map_size, map_size))
            nn.init.kaiming_normal_(self.kernel[:, None], mode="fan_in", nonlinearity="relu")
            self.bn = BatchNorm1d(channels, momentum=0.05)
        if variant == "plus":
            width = hidden_width(channels, reduction)
            self.fc1, self.fc2 = Linear(channels, width), Linear(width, channels)
            for layer in (self.fc1, self.fc2):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        if init == "identity":
            self.start_at_identity(2, *(layer for layer in (self.fc2 or self.bn,) if layer))

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(multiplier · x + residual), see `Gate.forward`."""
        if self.extent is None:
            return super().forward(x, residual, relu, overwrite=overwrite)
        self.check_map(x)
        side = 2 * self.extent - 1
        near = avg_pool2d(upcast(x), side, self.extent, self.extent - 1, False, False)
        out = multiply(x, self.gain * interpolate(near, x.shape[2:], mode="nearest").sigmoid())
        out = out if residual is None else out + residual
        return out.relu() if relu else out

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the sum over the kernel in the place of the mean, where there is one."""
        if self.map_size is None:
            return super().pool_map(x)
        if sizes_are_known(x) and x.shape[2:] != (self.map_size, self.map_size):
            raise ValueError(
                f"x is {tuple(x.shape)}, the kernel of this GE is for maps of"
                f" {self.map_size}×{self.map_size}"
            )
        sums = (upcast(x) * upcast(self.kernel)).sum((2, 3))
        return Pooled(sums, None, None, None, 1)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain, (N, C)."""
        logits = present(pooled.mean)
        if self.bn is not None:
            if self.training and sizes_are_known(logits) and logits.shape[0] == 1:
                raise ValueError("GE normalises over the batch: training needs at least 2 images")
            logits = self.bn(logits)
        if self.fc1 is not None and self.fc2 is not None:
            logits = self.fc2(self.fc1(logits.relu()).relu())
        return logits.sigmoid()


def _check_options(variant: str, extent: int | None, map_size: int | None) -> None:
    check_choice("variant of GE", variant, ("minus", "theta", "plus"))
    if extent is not None:
        check_whole("extent", extent, most=256)
    if map_size is not None:
        check_whole("map_size", map_size, most=256)
    if extent is not None and variant != "minus":
        raise ValueError(f"extent belongs to variant='minus', not to {variant!r}")
    if (map_size is None) != (variant == "minus"):
        raise ValueError(
            f"map_size is {map_size} with variant={variant!r}: the kernels of 'theta' and 'plus'"
            " need it, 'minus' has none"
        )
