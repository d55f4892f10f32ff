"""The two memory formats of feature maps: NCHW (contiguous) and NHWC (channels_last)."""

import torch
from torch import Tensor


def make_dense(x: Tensor) -> Tensor:
    """Return x, or a copy of it in the nearer of the two memory formats."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    last = x.stride(1) < x.stride(3)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def match_format(x: Tensor, other: Tensor) -> Tensor:
    """Return x in the memory format of another, dense feature map of the same shape."""
    if x.stride() == other.stride():
        return x
    last = not other.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
