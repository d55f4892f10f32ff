"""The passes over maps as kernels that Inductor makes: for the CPU, and devices without Triton."""

from functools import partial

from torch import Tensor

from spem.kernels import passes
from spem.kernels.formats import canonical
from spem.kernels.inductor import call

Values = dict[str, Tensor]


def pool(x: Tensor, wanted: tuple[str, ...]) -> Values:
    """Return the wanted statistics of a map (N, C, H, W), each (N, C), in one read of it."""
    text = partial(_pool_text, wanted)
    return dict(zip(wanted, call(text, ("pool", wanted), [canonical(x)]), strict=True))


def _pool_text(wanted: tuple[str, ...], x: Tensor) -> list[Tensor]:
    values = passes.pool(x, wanted)
    return [values[name] for name in wanted]


def recalibrate(
    x: Tensor, scale: Tensor, shift: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """Compute relu(scale * x + shift + residual); x and residual are (N, C, H, W)."""
    maps = [canonical(x)] if residual is None else [canonical(x), canonical(residual)]
    pooled = [scale.contiguous()] if shift is None else [scale.contiguous(), shift.contiguous()]
    flags = (residual is not None, shift is not None, relu)
    (out,) = call(partial(_recalibrate_text, *flags), ("recalibrate", flags), maps, pooled)
    return out.view(x.shape)


def _recalibrate_text(added: bool, shifted: bool, relu: bool, *tensors: Tensor) -> list[Tensor]:
    x, *rest = tensors
    residual = rest.pop(0) if added else None
    shift = rest.pop() if shifted else None
    return [passes.recalibrate(x, rest[0], shift, residual, relu)]


def sums(grad: Tensor, out: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift.

    Args:
        grad: of the recalibrated map, (N, C, H, W), in the format of x.
        out: the recalibrated map; None where there was no ReLU.
        x: the map.
    """
    maps = [canonical(m) for m in (grad, x, out) if m is not None]
    *d, dscale, dshift = call(_sums_text, ("sums", out is None), maps)
    return d[0].view(x.shape) if d else grad, dscale, dshift


def _sums_text(grad: Tensor, x: Tensor, out: Tensor | None = None) -> list[Tensor]:
    d = passes.masked(grad, out)
    both = passes.sums(d, x)
    return [*both] if out is None else [d, *both]


def input_gradient(
    x: Tensor,
    values: Values,
    gradients: Values,
    grad: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return the gradient of a map, see `passes.input_gradient`; x and grad are (N, C, H, W)."""
    maps = [canonical(m) for m in (x, grad) if m is not None]
    pooled = [t.contiguous() for t in (*values.values(), *gradients.values())]
    pooled += [] if scale is None else [scale.contiguous()]
    key = (grad is not None, scale is not None, tuple(values), tuple(gradients))
    (dx,) = call(partial(_input_text, *key), ("input gradient", key), maps, pooled)
    return dx.view(x.shape)


def _input_text(
    graded: bool,
    scaled: bool,
    names: tuple[str, ...],
    changed: tuple[str, ...],
    x: Tensor,
    *others: Tensor,
) -> list[Tensor]:
    rest = list(others)
    grad = rest.pop(0) if graded else None
    scale = rest.pop() if scaled else None
    values = dict(zip(names, rest[: len(names)], strict=True))
    gradients = dict(zip(changed, rest[len(names) :], strict=True))
    return [passes.input_gradient(x, values, gradients, grad, scale)]
