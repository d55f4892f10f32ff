"""FcaNet: squeeze-and-excitation on one frequency of each channel instead of its mean."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spem._checks import check_whole
from spem._messages import shorten, unknown
from spem.functional import recalibrate
from spem.gates.attention import Attention, Place
from spem.gates.gate import hidden_width
from spem.gates.layers import Linear
from spem.gates.regions import bin_means
from spem.kernels.reference import upcast
from spem.kernels.tracing import is_exported

# (u, v) pairs in units of a seventh of the DCT size, a digit each: u along the height, v along the
# width.
_FREQUENCIES = {
    "top": ("00600114513000324635526553342261", "01052020060463526333511242113053"),
    "low": ("00110221203401301234501234561234", "01012012230043154321065432106543"),
    "bot": ("61332412445146256162243355625536", "64466314456522514350311242115333"),
}


class FcaNet(Attention):
    """Frequency Channel Attention.

    The feature map, brought to dct_size × dct_size by adaptive average pooling where it has another
    size, is projected on a cosine: f(c) = Σ z_c(h,w)·D_c(h,w). Multiplier σ(W₂·relu(W₁·f)), without
    biases. The channels are cut into n equal groups of consecutive channels, one frequency each.
    2CR parameters with R = C // reduction; D is a fixed buffer.

    Args:
        channels: C.
        dct_size: side of the projected feature map, at most 256. With less than 7 every frequency
            is 0, a scaled mean. The authors give sizes for ImageNet only; `create_model` takes 32,
            16, 8 by stage, a definition of this library.
        frequencies: "top", "low" or "bot" and n from 1 to 32: the first n of that list.
        reduction: r.
        init: "paper", PyTorch's layers, or "identity", the second layer at 0 and gain 2.

    Raises:
        ValueError: an option is unknown or out of range, or n does not divide the channels.

    Source: Qin, Zhang, Wu and Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021 (arXiv
        2012.11879).
    """

    dct: Tensor

    @classmethod
    def options_at(cls, place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, the size of the feature map for dct_size if none is given."""
        return dict(options) if place.map_size is None else {"dct_size": place.map_size, **options}

    def __init__(
        self,
        channels: int,
        *,
        dct_size: int = 7,
        frequencies: str = "top16",
        reduction: int = 16,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_whole("dct_size", dct_size, most=256)
        pairs = _find_pairs(frequencies)
        if channels % len(pairs):
            raise ValueError(
                f"frequencies is {shorten(frequencies)}, must divide the channels: {len(pairs)}"
                f" does not divide {channels} channels"
            )
        self.dct_size, self.frequencies = dct_size, frequencies
        basis = torch.stack([_multiply_cosines(u, v, dct_size) for u, v in pairs])
        self.register_buffer("dct", basis.repeat_interleave(channels // len(pairs), 0))
        width = hidden_width(channels, reduction)
        self.fc1 = Linear(channels, width, bias=False)
        self.fc2 = Linear(width, channels, bias=False)
        if init == "identity":
            self.start_at_identity(2, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated feature map, (N, C, H, W).

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        with torch.autocast(x.device.type, enabled=False):
            z = upcast(x)
            if is_exported() or z.shape[2:] != self.dct.shape[1:]:
                z = bin_means(z, self.dct_size)
            descriptor = (z * self.dct).sum((2, 3))
            multiplier = self.gain * self.fc2(self.fc1(descriptor).relu()).sigmoid()
        return recalibrate(x, self.report_multiplier(multiplier))

    def extra_repr(self) -> str:
        """Show the projection."""
        return f"{self.channels}, dct_size={self.dct_size}, frequencies={self.frequencies!r}"


def _find_pairs(frequencies: str) -> list[tuple[int, int]]:
    match = re.fullmatch(r"([a-z]+)(\d+)", str(frequencies))
    if match is None or match[1] not in _FREQUENCIES or not 1 <= int(match[2]) <= 32:
        raise unknown("frequencies", frequencies, [f"{name}1 … {name}32" for name in _FREQUENCIES])
    u, v = (map(int, digits) for digits in _FREQUENCIES[match[1]])
    return list(zip(u, v, strict=True))[: int(match[2])]


def _multiply_cosines(u: int, v: int, size: int) -> Tensor:
    """Return the product of two cosines over (h, w), of frequencies in sevenths of the size."""
    positions = (torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)

    def wave(frequency: int) -> Tensor:
        norm = math.sqrt((2 if frequency else 1) / size)
        return (frequency * positions).cos() * norm

    product = wave(u * (size // 7))[:, None] * wave(v * (size // 7))
    return product.to(torch.get_default_dtype())
