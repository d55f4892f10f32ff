"""The passes over maps by Triton's kernels, in the forms that `linked` and `segment` take."""

import logging
import os
from functools import cache

import torch
from torch import Tensor

from spem.kernels import inductor, triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Values = dict[str, Tensor]

recalibrate = triton.recalibrate


@cache
def compiles_heads() -> bool:
    """Return whether Inductor compiles heads here, of kernels for the same device."""
    try:
        device = "cpu" if INTERPRETED else "cuda"
        inductor.call(lambda x: [x + 1], "probe", [torch.zeros(2, 3, device=device)], [], 2, 3)
    except Exception as error:  # whatever a compiler and its driver may raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logging.getLogger("spem").warning("gates are not compiled: %s", reason)
        return False
    return True


def normalises_faster(x: Tensor) -> bool:
    """Return whether a norm without a gate is faster by these passes than by PyTorch's own."""
    return True


def found_by_pool(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return what `pool` finds, in order, where some statistics are wanted."""
    extrema = ("max", "min", "argmax", "argmin", "first")
    return ("mean", "var", *(extrema if "max" in wanted or "min" in wanted else ()))


def pool_stack(x: Tensor, wanted: tuple[str, ...]) -> Tensor:
    """Pool a map (N, C, H, W) in one read.

    Returns:
        At least the wanted statistics; with extrema also where their gradients go, as the bits of
        integers, and the values at position 0: each (N, C), in the order of `found_by_pool`.
    """
    return triton.pool_stack(x, "max" in wanted or "min" in wanted)


def pool(x: Tensor, wanted: tuple[str, ...]) -> Values:
    """Return the wanted statistics of a map (N, C, H, W), and what their gradients need."""
    moments = triton.pool(x, "max" in wanted or "min" in wanted)
    found = moments._asdict().items()
    return {name: value for name, value in found if value is not None}


def sums_stack(
    grad: Tensor, out: Tensor | None, x: Tensor, write: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift, (2, N, C).

    The first is written even where it is not wanted: the map's gradient reads it instead of `out`.
    """
    return triton.sums(grad, out, x)


def sums(grad: Tensor, out: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift."""
    d, (dscale, dshift) = triton.sums(grad, out, x)
    return d, dscale, dshift


def input_gradient(
    x: Tensor,
    values: Values,
    gradients: Values,
    grad: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return the gradient of a map from those of its pooled values and its recalibration."""
    known = {name: values.get(name) for name in ("mean", "argmax", "argmin")}
    changed = {f"d{name}": value.contiguous() for name, value in gradients.items()}
    return triton.input_gradient(grad, x, scale, **known, **changed)


def input_gradient_of_stack(
    x: Tensor,
    wanted: tuple[str, ...],
    stack: Tensor,
    gradients: Values,
    grad: Tensor,
    scale: Tensor,
) -> Tensor:
    """Return the gradient of a map from what `pool_stack` returned; see `input_gradient`."""
    return input_gradient(x, triton.moments(stack)._asdict(), gradients, grad, scale)
