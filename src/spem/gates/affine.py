"""Batch normalisation as an affine map: tensors (C,), one definition for every backend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spem.functional import Pooled
from spem.kernels.reference import upcast


def norm_coefficients(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, shift and bias of a norm, each (C,), such that it is scale·x + shift.

    Args:
        mean: of the batch, or the running one, (C,).
        var: likewise, biased.
        weight: of the norm, (C,), or None.
        bias: likewise.
        eps: added to the variance.
    """
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * upcast(weight)
    bias = torch.zeros_like(scale) if bias is None else upcast(bias)
    return scale, bias - mean * scale, bias


def merge_moments(
    means: Tensor,
    variances: Tensor,
    images: Any = None,
    add: Callable[[Tensor], Tensor] | None = None,
    differentiate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Merge the mean and the variance of each image, (N, C), into those of the batch, (C,).

    Args:
        means: of the images of this process.
        variances: likewise, biased.
        images: number of images, if it is not that of `means`.
        add: adds up a tensor over all processes that share the statistics.
        differentiate: whether the variance hands its mean a gradient, which is 0 up to rounding,
            while the gradient of that gradient is not.
    """
    images = means.shape[0] if images is None else images
    mean = means.sum(0)
    mean = (mean if add is None else add(mean)) / images
    centre = mean if differentiate else mean.detach()
    var = (variances + (means - centre).square()).sum(0)
    return mean, (var if add is None else add(var)) / images


def update_running(old: Tensor, observed: Tensor, momentum: float | Tensor) -> Tensor:
    """Return the new value of a running statistic, in its dtype."""
    return (old + momentum * (observed - old)).to(old.dtype)


def track_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics of a norm, if it has any, by those of a batch.

    Args:
        norm: a BatchNorm.
        mean: of the batch, (C,).
        variance: of the batch, unbiased, (C,).
    """
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        buffer.lerp_(value.to(buffer.dtype), 0.0 if momentum is None else momentum)


def resolve_ties(pooled: Pooled, first: Tensor | None, scale: Tensor) -> Pooled:
    """Take both extrema from the first position where the scale of a norm is 0.

    Such a scale, the usual start of a residual branch's last norm, ties all positions of the norm's
    output: the first is its maximum and its minimum. The values have no influence there, but the
    gradient of the scale is taken from them.

    Args:
        pooled: the pooled values of the norm's input.
        first: its values at position 0, (N, C); None leaves the extrema as they are, where no
            gradient is asked for and their values have no influence.
        scale: of the norm, (C,).
    """
    if first is None or pooled.max is None or pooled.min is None:
        return pooled
    flat = scale == 0
    return pooled._replace(
        max=torch.where(flat, first, pooled.max), min=torch.where(flat, first, pooled.min)
    )
