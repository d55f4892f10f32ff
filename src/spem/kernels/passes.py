"""The passes over maps that attention and its gradient need, as text that a compiler fuses.

Maps are (N, C, K, T), in NHWC with K = H and T = W, in NCHW with K = 1 and T = H·W: where channels
lie together, whole rows of them are reduced before the next is read. Pooled values and coefficients
are (N, C), or (C,) where all images share them.
"""

import torch
from torch import Tensor

from spem.kernels.reference import widen

# Positions are compared as floating-point numbers, which vectorise; float32 counts up to here.
MOST_POSITIONS = 1 << 24


def pool(x: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Pool every map in one read; see `spem.functional.pool`.

    Mean and variance are those of the deviation from the mean of the first sixteenth of the map.
    So the squares cannot lose more than four bits, whatever the mean: that of k of L values is at
    most √(L/k) deviations away from the mean of all.
    """
    wide, values = widen(x), {}
    if "var" in wanted:
        shift = _mean(_first_sixteenth(wide))
        centred = wide - spread(shift)
        rest = _mean(centred)
        values["mean"] = rest + shift
        values["var"] = (_mean(centred.square()) - rest.square()).clamp_min(0)
    elif "mean" in wanted:
        values["mean"] = _mean(wide)
    if "max" in wanted:
        values["max"] = widen(x.amax(3).amax(2))
    if "min" in wanted:
        values["min"] = widen(x.amin(3).amin(2))
    return values


def _first_sixteenth(x: Tensor) -> Tensor:
    if x.shape[2] == 1:
        return x[:, :, :, : (x.shape[3] + 15) // 16]
    return x[:, :, : (x.shape[2] + 15) // 16]


def _mean(x: Tensor) -> Tensor:
    return x.sum(3).sum(2) / (x.shape[2] * x.shape[3])


def spread(value: Tensor) -> Tensor:
    """Return pooled values or coefficients so that they broadcast over a map."""
    return value[..., None, None]


def recalibrate(
    x: Tensor, scale: Tensor, shift: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """Compute relu(scale * x + shift + residual), rounded once to the dtype of x."""
    out = widen(x) * spread(scale)
    if shift is not None:
        out = out + spread(shift)
    if residual is not None:
        out = out + residual
    return (out.relu() if relu else out).to(x.dtype)


def masked(grad: Tensor, out: Tensor | None) -> Tensor:
    """Return the gradient before the ReLU that gave `out`; without one, the gradient itself."""
    return grad if out is None else torch.where(out > 0, grad, 0.0)


def sums(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ grad·x and Σ grad over the positions: the gradients of scale and shift."""
    grad = widen(grad)
    return (grad * widen(x)).sum(3).sum(2), grad.sum(3).sum(2)


def _index(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Number the positions of a map in row-major order, as floating-point numbers."""
    rows, columns = (torch.arange(size, dtype=dtype, device=x.device) for size in x.shape[2:])
    return rows[:, None] * x.shape[3] + columns


def position(x: Tensor, value: Tensor) -> Tensor:
    """Return the first position of a value of each map, in row-major order."""
    index = _index(x, value.dtype)
    return torch.where(widen(x) == spread(value), index, torch.inf).amin(3).amin(2)


def input_gradient(
    x: Tensor,
    values: dict[str, Tensor],
    gradients: dict[str, Tensor],
    grad: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return the gradient of a map from those of its pooled values and its recalibration.

    Args:
        x: the map.
        values: its pooled values.
        gradients: of each of them; one that is left out is 0.
        grad: of the recalibrated map, before the ReLU.
        scale: by which it was recalibrated.
    """
    count = x.shape[2] * x.shape[3]
    total = widen(torch.zeros_like(x)) if grad is None else widen(grad)
    if grad is not None and scale is not None:
        total = total * spread(scale)
    if "mean" in gradients:
        total = total + spread(gradients["mean"] / count)
    if "var" in gradients:
        slope = gradients["var"] * 2 / count
        total = total + spread(slope) * (widen(x) - spread(values["mean"]))
    index = _index(x, total.dtype)
    for name in ("max", "min"):
        if name in gradients:
            found = index == spread(position(x, values[name]))
            total = total + torch.where(found, spread(gradients[name]), 0.0)
    return total.to(x.dtype)
