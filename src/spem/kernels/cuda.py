"""The passes over maps by Triton's kernels, in the form that `spem.kernels.linked` takes."""

import os

from torch import Tensor

from spem.kernels import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Values = dict[str, Tensor]

recalibrate = triton.recalibrate


def pool(x: Tensor, wanted: tuple[str, ...]) -> Values:
    """Return the wanted statistics of a map (N, C, H, W), and what their gradients need."""
    moments = triton.pool(x, "max" in wanted or "min" in wanted)
    found = moments._asdict().items()
    return {name: value for name, value in found if value is not None}


def sums(grad: Tensor, out: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift."""
    d, dshift, dscale = triton.sums(grad, out, x)
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
