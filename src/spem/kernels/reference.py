"""The two operations on feature maps, written plainly: every other backend must equal this one."""

from functools import partial

import torch
from torch import Tensor

from spem.kernels.backend import Backend, PooledMap, Sigmoid
from spem.kernels.tracing import is_traced


def upcast(x: Tensor) -> Tensor:
    """Return x in float32, or as it is where it is wider: the precision of all statistics."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool_mean(x: Tensor) -> Tensor:
    """Mean over the positions of each channel: (N, C, H, W) -> (N, C)."""
    return upcast(x).mean((2, 3))


def pool_var(x: Tensor) -> Tensor:
    """Biased variance over the positions, centred first: (N, C, H, W) -> (N, C).

    A raw sum of squares would lose all digits where the mean is large beside the deviation.
    """
    centred = upcast(x) - pool_mean(x)[:, :, None, None]
    return centred.square().mean((2, 3))


def pool_max(x: Tensor) -> Tensor:
    """Largest value of each channel, (N, C, H, W) -> (N, C).

    The gradient goes to the first position in row-major order that holds the value.
    """
    return upcast(x.flatten(2).max(-1).values)


def pool_min(x: Tensor) -> Tensor:
    """Smallest value of each channel; ties as in `pool_max`."""
    return upcast(x.flatten(2).min(-1).values)


def recalibrate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    sigmoid: Sigmoid | None = None,
) -> Tensor:
    """Compute relu((scale·x + shift)·sigmoid(x) + residual), rounded once to the dtype of x.

    x and residual are (N, C, H, W), the coefficients (N, C) or (C,); None leaves out its term or
    its factor.
    """
    wide = upcast(x)
    out = wide if scale is None else wide * scale[..., None, None]
    if shift is not None:
        out = out + shift[..., None, None]
    if sigmoid is not None:
        out = out * weigh(wide, sigmoid)
    if residual is not None:
        out = out + residual
    return (out.relu() if relu else out).to(x.dtype)


def weigh(x: Tensor, sigmoid: Sigmoid) -> Tensor:
    """Return σ(slope·x + offset + square·(x − centre)²), (N, C, H, W), of x in float32 or wider."""
    logits = sigmoid.offset[..., None, None]
    if sigmoid.slope is not None:
        logits = logits + sigmoid.slope[..., None, None] * x
    if sigmoid.square is not None and sigmoid.centre is not None:
        distance = x - sigmoid.centre[..., None, None]
        logits = logits + sigmoid.square[..., None, None] * distance.square()
    return logits.sigmoid()


_STATISTICS = {"mean": pool_mean, "var": pool_var, "max": pool_max, "min": pool_min}


class Reference(Backend):
    """The functions above under autograd: what exporters and `torch.compile` trace."""

    name = "reference"

    def pool(self, x: Tensor, wanted: tuple[str, ...]) -> PooledMap:
        """See `Backend.pool`."""
        return PooledMap({n: _STATISTICS[n](x) for n in wanted}, partial(self.recalibrate, x))

    def recalibrate(
        self,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
        sigmoid: Sigmoid | None = None,
    ) -> Tensor:
        """See `Backend.recalibrate`; the memory of x is never taken."""
        return recalibrate(x, scale, shift, residual, relu, sigmoid)

    def prefers_own_norm(self, x: Tensor, gated: bool) -> bool:
        """See `Backend.prefers_own_norm`; a trace must not ask for the number of values."""
        return gated and (is_traced(x) or x.numel() > 0)


REFERENCE = Reference()
