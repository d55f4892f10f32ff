"""Pooling, head and recalibration as differentiable operations above the passes over maps.

The head is what lies between the passes: it turns the pooled values of a map into the coefficients
of its recalibration. It works on (N, C) tensors alone and is differentiated by autograd.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spem.kernels import inductor, passes
from spem.kernels.formats import canonical, dense, like

Values = dict[str, Tensor]


class Coefficients(NamedTuple):
    """What a head returns: the recalibration is scale·x + shift.

    scale and shift are (N, C), or (C,) for all images alike; shift may be None. `updates` holds
    new contents for some of the head's tensors, by their index.
    """

    scale: Tensor
    shift: Tensor | None
    updates: dict[int, Tensor]


class Head(NamedTuple):
    """A head that can be compiled: a pure function of pooled values and tensors.

    Args:
        function: from the pooled values of maps, the number of their positions and the tensors to
            coefficients. The values of a backward pass also hold "first", those at position 0.
        key: equal for two heads only where their functions are.
        wanted: the statistics that it reads.
        tensors: parameters and buffers; all (C,), unless `width` is given.
        width: C where the key holds for this number of channels alone.
    """

    function: Callable[[Values, Any, Sequence[Tensor]], Coefficients]
    key: Hashable
    wanted: tuple[str, ...]
    tensors: Sequence[Tensor]
    width: int | None = None


# Which tensors of a head have no influence on its coefficients, found while its text is traced.
_idle: dict[Hashable, tuple[int, ...]] = {}


def apply(head: Head, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Return relu(scale·x + shift + residual) with the coefficients of a head.

    Two kernels do all the work: one forward, one backward.

    Args:
        head: gives the coefficients.
        x: (N, C, H, W), not empty.
        residual: in the shape and dtype of x, or None.
        relu: whether negative results become 0.
    """
    x = dense(x)
    residual = None if residual is None else like(x, residual)
    if torch.is_grad_enabled():
        return _Segment.apply(head, relu, x, residual, *head.tensors)
    return _forward(head, relu, x, residual, head.tensors)[0]


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head: Head, relu: bool, x: Tensor, residual: Tensor | None, *tensors: Tensor):
        out, scale, *values = _forward(head, relu, x, residual, tensors)
        ctx.head, ctx.added = head, residual is not None
        ctx.save_for_backward(x, out if relu else None, scale, *values, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, out, scale, *others = ctx.saved_tensors
        count = len(ctx.head.wanted)
        _, _, needs_x, _, *needs = ctx.needs_input_grad
        maps = [like(x, grad), x] if out is None else [like(x, grad), x, out]
        wanted = tuple(i for i, needed in enumerate(needs) if needed)
        key = ("backward", ctx.head.key, ctx.added, needs_x, wanted, out is None)
        pooled, rest = others[:count], others[count:]
        (pooled if scale.dim() == 2 else rest).insert(0, scale)
        text = partial(_backward_text, ctx.head, key, out is not None, scale.dim() == 2)
        flat = [canonical(m) for m in maps]
        results = inductor.call(text, key, flat, pooled, rest, ctx.head.width)
        results = iter(results)
        dresidual = (maps[0] if out is None else next(results).view(x.shape)) if ctx.added else None
        dx = next(results).view(x.shape) if needs_x else None
        gradients: list[Tensor | None] = [None] * len(needs)
        for i in wanted:
            if i not in _idle[key]:
                gradients[i] = next(results)
        return None, None, dx, dresidual, *gradients


def _forward(
    head: Head, relu: bool, x: Tensor, residual: Tensor | None, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Return the result, the scale and the pooled values."""
    maps = [canonical(x)] if residual is None else [canonical(x), canonical(residual)]
    key = ("forward", head.key, relu, residual is None)
    text = partial(_forward_text, head, relu, residual is not None)
    out, *rest = inductor.call(text, key, maps, (), tensors, head.width)
    return [out.view(x.shape), *rest]


def _forward_text(head: Head, relu: bool, added: bool, x: Tensor, *others: Tensor) -> list[Tensor]:
    residual, tensors = (others[0], others[1:]) if added else (None, others)
    values = passes.pool(x, head.wanted)
    scale, shift, updates = head.function(values, x.shape[2] * x.shape[3], tensors)
    out = passes.recalibrate(x, scale, shift, residual, relu)
    for index, value in updates.items():
        tensors[index].copy_(value)
    return [out, scale, *(values[name] for name in head.wanted)]


def _backward_text(
    head: Head,
    key: tuple[Any, ...],
    rectified: bool,
    per_image: bool,
    grad: Tensor,
    x: Tensor,
    *others: Tensor,
) -> list[Tensor]:
    """Return the gradients of residual, x and tensors, those that the key asks for."""
    _, _, added, needs_x, wanted, _ = key
    out, others = (others[0], others[1:]) if rectified else (None, others)
    count = len(head.wanted)
    if per_image:
        scale, others = others[0], others[1:]
        pooled, tensors = others[:count], others[count:]
    else:
        pooled, scale, tensors = others[:count], others[count], others[count + 1 :]
    values = dict(zip(head.wanted, pooled, strict=True))
    d = passes.masked(grad, out)
    gradients, own = _through_head(head, values, tensors, wanted, d, x)
    results = [d] if added and rectified else []
    if needs_x:
        results.append(passes.input_gradient(x, values, gradients, d, scale))
    _idle[key] = tuple(i for i in wanted if own[i] is None)
    return results + [g for g in own.values() if g is not None]


def _through_head(
    head: Head,
    values: Values,
    tensors: Sequence[Tensor],
    wanted: tuple[int, ...],
    d: Tensor,
    x: Tensor,
) -> tuple[Values, dict[int, Tensor | None]]:
    """Differentiate a head: return the gradients of the pooled values and of the wanted tensors."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        first = {"first": passes.widen(x[..., 0, 0])} if "max" in values else {}
        scale, shift, _ = head.function(leaves | first, x.shape[2] * x.shape[3], inputs)
        dscale, dshift = passes.sums(d, x)
        if scale.dim() == 1:
            dscale, dshift = dscale.sum(0), dshift.sum(0)
        outputs = [(scale, dscale)] if shift is None else [(scale, dscale), (shift, dshift)]
        outputs = [(value, grad) for value, grad in outputs if value.requires_grad]
        asked = [*leaves.values(), *(inputs[i] for i in wanted)]
        if not outputs or not asked:
            return {}, dict.fromkeys(wanted)
        ends, grads = zip(*outputs, strict=True)
        found = torch.autograd.grad(ends, asked, grads, allow_unused=True)
    of_values = zip(leaves, found[: len(leaves)], strict=True)
    return (
        {name: grad for name, grad in of_values if grad is not None},
        dict(zip(wanted, found[len(leaves) :], strict=True)),
    )
