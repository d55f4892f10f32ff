"""CBAM: channel attention of several poolings, then spatial attention."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_normalises, check_odd, check_switch
from spem._messages import shorten
from spem.functional import Pooled, pool, recalibrate
from spem.gates.attention import Attention, multiply
from spem.gates.gate import hidden_width, measure_length, present
from spem.gates.layers import BatchNorm2d, Conv2d, Linear
from spem.kernels.reference import upcast

_POOLS: dict[str, tuple[tuple[str, ...], Callable[[Pooled, Tensor], Tensor]]] = {
    "avg": (("mean",), lambda pooled, x: present(pooled.mean)),
    "max": (("max",), lambda pooled, x: present(pooled.max)),
    "lp": (("mean", "var"), lambda pooled, x: measure_length(pooled)),
    "lse": ((), lambda pooled, x: upcast(x).flatten(2).logsumexp(-1)),
}


class CBAM(Attention):
    """Convolutional Block Attention Module.

    Channel: x₁ = x·σ(Σ over the pools P of MLP(P(x))), MLP = W₂·relu(W₁·d + b₁) + b₂, one for all
    pools. Spatial: y = x₁·σ(BN(conv([max_c x₁; mean_c x₁]))), the convolution k×k, 2 -> 1, without
    bias. 2CR + R + C parameters with R = C // reduction, and 2k² + 2.

    Args:
        channels: C.
        reduction: r.
        pools: any of "avg", "max", "lp" (√Σx²) and "lse" (log Σ exp x), without repetition.
        spatial: False leaves the spatial part out.
        kernel_size: k of the spatial part, odd, at most 999.
        init: "paper", that of the authors' networks (biases and the scale of the spatial norm 0, so
            the spatial multiplier starts at ½), or "identity" (W₂ at 0 too, gain 4; 2 without the
            spatial part).

    Raises:
        ValueError: an option is unknown or out of range; training with a single value to normalise.

    Source: Woo, Park, Lee and Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv
        1807.06521).
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pools: Sequence[str] = ("avg", "max"),
        spatial: bool = True,
        kernel_size: int = 7,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        width = hidden_width(channels, reduction)
        self.pools = _check_pools(pools)
        check_switch("spatial", spatial)
        if not spatial and kernel_size != 7:
            raise ValueError(f"kernel_size is {shorten(kernel_size)}, but belongs to spatial=True")
        self.fc1 = Linear(channels, width)
        self.fc2 = Linear(width, channels)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)
        self.spatial = _Spatial(kernel_size) if spatial else None
        if init == "identity":
            self.start_at_identity(4 if spatial else 2, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        pooled = pool(x, {name for key in self.pools for name in _POOLS[key][0]})
        with torch.autocast(x.device.type, enabled=False):
            total = sum(self.fc2(self.fc1(_POOLS[key][1](pooled, x)).relu()) for key in self.pools)
            multiplier = cast(Tensor, total).sigmoid()
        if self.spatial is None:
            return recalibrate(x, self.report_multiplier(self.gain * multiplier))
        x = recalibrate(x, self.report_multiplier(multiplier))
        with torch.autocast(x.device.type, enabled=False):
            places = self.gain * self.spatial(upcast(x))
        return multiply(x, places)


class _Spatial(nn.Module):
    def __init__(self, kernel_size: int):
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.conv = Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(1, momentum=0.01)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        check_normalises("CBAM", self, x)
        # Not amax: the gradient of tied channels goes to the first.
        both = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
        return self.bn(self.conv(both)).sigmoid()


def _check_pools(pools: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(pools, Sequence):
        raise ValueError(f"pools is {shorten(pools)}, must be a list of names")
    names = (pools,) if isinstance(pools, str) else tuple(pools)
    for name in names:
        check_choice("pool of CBAM", name, _POOLS)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"pools is {shorten(names)}, must name at least one pooling and none twice"
        )
    return names
