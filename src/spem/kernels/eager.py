"""The operations for eager PyTorch: as `reference`, with fewer passes over the map."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spem.kernels.reference import pool_mean, pool_var, widen

__all__ = ["pool_max", "pool_mean", "pool_min", "pool_var", "recalibrate"]


class _Extremum(torch.autograd.Function):
    """Largest or smallest value, whose backward writes one value a map, in the map's own format."""

    @staticmethod
    def forward(ctx, x: Tensor, largest: bool) -> Tensor:
        ctx.shape = x.shape
        ctx.format = channels_last_or_contiguous(x)
        if ctx.format is torch.channels_last:
            # It takes the first of equal values and hands NaN on, several times as fast as max.
            whole = x.shape[2:]
            signed = x if largest else -x
            values, positions = F.max_pool2d(signed, whole, return_indices=True)
            values, positions = values.flatten(1), positions.flatten(1)
            values = values if largest else -values
        else:
            flat = x.flatten(2)
            values, positions = flat.max(-1) if largest else flat.min(-1)
        ctx.save_for_backward(positions)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (positions,) = ctx.saved_tensors
        dx = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.format
        ).zero_()
        dx.flatten(2).scatter_(2, positions[..., None], grad[..., None])
        return dx, None


def channels_last_or_contiguous(x: Tensor) -> torch.memory_format:
    """Return the memory format in which results for x are stored."""
    dense = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if dense else torch.contiguous_format


def pool_max(x: Tensor) -> Tensor:
    """Largest value of each map, (N, C, H, W) -> (N, C); ties as in `reference.pool_max`."""
    if x.requires_grad and torch.is_grad_enabled():
        return widen(_Extremum.apply(x, True))
    return widen(x.amax((2, 3)))


def pool_min(x: Tensor) -> Tensor:
    """Smallest value of each map; ties as in `reference.pool_max`."""
    if x.requires_grad and torch.is_grad_enabled():
        return widen(_Extremum.apply(x, False))
    return widen(x.amin((2, 3)))


def recalibrate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """Compute relu(scale * x + shift + residual) in the dtype of x, the addition fused.

    With `overwrite`, allowed only where no gradient is asked for, the result is in the memory of x.
    """
    scale = scale.to(x.dtype)[:, :, None, None]
    added = residual if shift is None else shift.to(x.dtype)[:, :, None, None]
    if added is None:
        out = x.mul_(scale) if overwrite else x * scale
    elif torch.is_grad_enabled():
        # The backward pass of addcmul makes one more copy of the map than that of a product.
        out = (x * scale).add_(added)
    else:
        out = torch.addcmul(added, x, scale, out=x if overwrite else None)
    if shift is not None and residual is not None:
        out = out.add_(residual)
    return out.relu_() if relu else out
