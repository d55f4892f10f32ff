"""The two memory formats of maps."""

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """Return x, or a copy of it in the nearer of the two memory formats."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    last = x.stride(1) < x.stride(3)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def like(x: Tensor, other: Tensor) -> Tensor:
    """Return another map of the same shape in the memory format of a dense x."""
    if other.stride() == x.stride():
        return other
    last = not x.is_contiguous()
    return other.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
