"""Convolutions along the channels as sums of shifted products, which Inductor fuses.

It calls a library for a convolution, in a kernel for one number of channels only. Both functions
take the arguments of the operators of PyTorch that they decompose.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Longer kernels are left to the library: every tap is a line of the kernel that is made.
_MOST_TAPS = 16


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *others: Any,
) -> Tensor:
    """Return the correlation of x, (N, 1, L), with a weight (1, 1, k), (N, 1, L + 2p - d(k - 1)).

    NotImplemented for any other convolution.
    """
    if not _is_served(x, weight, stride, padding, dilation, *others):
        return NotImplemented
    taps = weight.flatten()
    shifted = _shifted(x, padding[0], dilation[0], len(taps))
    out = _total([tap * part for tap, part in zip(taps, shifted, strict=True)])
    return out if bias is None else out + bias[:, None]


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *others: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight and bias, each where the last argument says so."""
    *rest, wanted = others
    if not _is_served(x, weight, stride, padding, dilation, *rest):
        return NotImplemented
    (p,), (d,), taps = padding, dilation, weight.flatten()
    dx = dweight = dbias = None
    if wanted[0]:
        reach = d * (len(taps) - 1)
        shifted = _shifted(grad, reach - p, d, len(taps))
        dx = _total([tap * part for tap, part in zip(taps.flip(0), shifted, strict=True)])
    if wanted[1]:
        shifted = _shifted(x, p, d, len(taps))
        dweight = torch.stack([(grad * part).sum() for part in shifted]).view_as(weight)
    if wanted[2]:
        dbias = grad.sum((0, 2))
    return dx, dweight, dbias


def _is_served(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> bool:
    return (
        x.dim() == 3
        and weight.shape[0] == weight.shape[1] == 1
        and weight.shape[2] <= _MOST_TAPS
        and stride[0] == 1
        and padding[0] <= dilation[0] * (weight.shape[2] - 1)
        and not transposed
    )


def _shifted(x: Tensor, padding: int, step: int, number: int) -> list[Tensor]:
    """Return x, (N, 1, L), between zeros, from each of some positions on, all of one length."""
    size = x.shape[-1]
    # F.pad would make the number of images a constant of the trace.
    zeros = x.new_zeros(*x.shape[:-1], size + 2 * padding)
    padded = torch.slice_scatter(zeros, x, -1, padding, padding + size)
    length = size + 2 * padding - step * (number - 1)
    return [padded.narrow(-1, i * step, length) for i in range(number)]


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, added from first to last."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
