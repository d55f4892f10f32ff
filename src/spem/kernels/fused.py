"""Pooling, head and recalibration as one differentiable operation with a compiled head.

The head is what lies between the passes over the map: it turns pooled values into the coefficients
of the recalibration. It works on (N, C) tensors alone and is differentiated by autograd, once.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from itertools import count as count_from_zero
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spem.kernels import inductor
from spem.kernels.memory_format import dense, like

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
        function: from the pooled values of maps, the number of their positions, 1 or a tensor (),
            and the tensors to coefficients. The values of a backward pass also hold "first",
            those at position 0, if "max" is wanted.
        key: equal for two heads only where their functions are.
        wanted: the statistics that it reads.
        tensors: parameters and buffers; their sizes follow from the key and C.
    """

    function: Callable[[Values, Any, Sequence[Tensor]], Coefficients]
    key: Hashable
    wanted: tuple[str, ...]
    tensors: Sequence[Tensor]


# The keys of all heads, by which they are numbered: nested tuples are slow to look up.
_numbers: dict[Hashable, int] = {}
_next = count_from_zero()
# Which gradients a head's kernel returns, in order: names of values and indices of tensors.
_returned: dict[Hashable, list[str | int]] = {}


def number(key: Hashable) -> int:
    """Return a key that is as unique as the given one, and hashed at once."""
    # Nothing of this can be interrupted by another thread.
    return _numbers.setdefault(key, next(_next))


def apply(
    ops: ModuleType,
    head: Head,
    x: Tensor,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """Return relu(scale·x + shift + residual) with the coefficients of a head.

    Args:
        ops: the implementation of the passes over the map, `compiled` or `cuda`.
        head: gives the coefficients.
        x: (N, C, H, W), not empty.
        residual: in the shape and dtype of x, or None.
        relu: whether negative results become 0.
        overwrite: whether the result may take the memory of x where no gradient is asked for.
    """
    x = dense(x)
    residual = None if residual is None else like(x, residual)
    if torch.is_grad_enabled():
        return _Segment.apply(ops, head, relu, x, residual, *head.tensors)
    return _forward(ops, head, relu, x, residual, head.tensors, overwrite)[0]


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        ops: ModuleType,
        head: Head,
        relu: bool,
        x: Tensor,
        residual: Tensor | None,
        *tensors: Tensor,
    ):
        out, scale, pooled = _forward(ops, head, relu, x, residual, tensors)
        ctx.ops, ctx.head = ops, head
        ctx.save_for_backward(x, out if relu else None, scale, pooled, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, out, scale, pooled, *tensors = ctx.saved_tensors
        ops, head, needed = ctx.ops, ctx.head, ctx.needs_input_grad
        wanted = tuple([i for i, needs in enumerate(needed[5:]) if needs])
        grad = like(x, grad)
        d, sums = ops.sums_stack(grad, out, x, needed[4])
        found = _through_head(ops, head, wanted, x, pooled, tensors, scale.dim(), sums)
        dx = None
        if needed[3]:
            behind = (grad, scale, out) if d is None else (d, scale)
            if pooled is None:
                dx = ops.input_gradient(x, {}, {}, *behind)
            else:
                of_values = {name: g for name, g in found.items() if isinstance(name, str)}
                dx = ops.input_gradient_of_stack(x, head.wanted, pooled, of_values, *behind)
        return None, None, None, dx, d if needed[4] else None, *map(found.get, range(len(tensors)))


def _forward(
    ops: ModuleType,
    head: Head,
    relu: bool,
    x: Tensor,
    residual: Tensor | None,
    tensors: Sequence[Tensor],
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the result, the scale and the stack of pooled values, if there are any."""
    stack = ops.pool_stack(x, head.wanted) if head.wanted else None
    n, c, *size = x.shape
    count = prod(size)
    key = ("forward", ops, head.key, head.wanted, count == 1)
    text = partial(_forward_text, ops, head, count == 1)
    pooled = [] if stack is None else [stack]
    rest = [_number(count, x.device), *tensors]
    scale, *shift = inductor.call(text, key, pooled, rest, n, c)
    shift = shift[0] if shift else None
    out = ops.recalibrate(x, scale, shift, residual, relu, overwrite)
    return out, scale, stack


@cache
def _number(count: int, device: torch.device) -> Tensor:
    return torch.tensor(count, dtype=torch.float64, device=device)


def _forward_text(ops: ModuleType, head: Head, single: bool, *given: Tensor) -> list[Tensor]:
    """Return scale and shift, and update the head's tensors."""
    values, (number, *tensors) = _split(ops, head, given)
    values = {name: values[name] for name in head.wanted}
    count = 1 if single else number
    coefficients, updates = _coefficients(head, values, count, tensors)
    for index, value in updates.items():
        tensors[index].copy_(value)
    return coefficients


def _split(ops: ModuleType, head: Head, given: Sequence[Tensor]) -> tuple[Values, Sequence[Tensor]]:
    """Return the pooled values by name, of their stack if the head has any, and what follows."""
    if not head.wanted:
        return {}, given
    return dict(zip(ops.found_by_pool(head.wanted), given[0], strict=True)), given[1:]


def _coefficients(
    head: Head, values: Values, count: Tensor | int, tensors: Sequence[Tensor]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    scale, shift, updates = head.function(values, count, tensors)
    both = [scale] if shift is None else [scale, shift]
    # A multiplier may be (1, C) for all images alike.
    images = [next(iter(values.values()))] if values and scale.dim() == 2 else []
    found = torch.broadcast_tensors(*both, *images)[: len(both)]
    return [t.contiguous() for t in found], updates


def _through_head(
    ops: ModuleType,
    head: Head,
    wanted: tuple[int, ...],
    x: Tensor,
    stack: Tensor | None,
    tensors: Sequence[Tensor],
    dimensions: int,
    sums: Tensor,
) -> dict[str | int, Tensor]:
    """Return the gradients of the pooled values, by name, and of the tensors, by index."""
    if not head.wanted and not wanted:
        return {}
    n, c, *size = x.shape
    count = prod(size)
    key = ("backward", ops, head.key, head.wanted, wanted, count == 1)
    text = partial(_backward_text, ops, head, key, dimensions)
    pooled = [sums] if stack is None else [stack, sums]
    found = inductor.call(text, key, pooled, [_number(count, x.device), *tensors], n, c)
    return dict(zip(_returned[key], found, strict=True))


def _backward_text(
    ops: ModuleType, head: Head, key: tuple[Any, ...], dimensions: int, *given: Tensor
) -> list[Tensor]:
    *_, wanted, single = key
    values, (sums, number, *tensors) = _split(ops, head, given)
    gradients = list(sums if dimensions == 2 else sums.sum(1))
    count = 1 if single else number
    with torch.enable_grad():
        pooled = {name: values[name].detach().requires_grad_() for name in head.wanted}
        inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        leaves = {**pooled, **{i: inputs[i] for i in wanted}}
        first = {"first": values["first"]} if "first" in values else {}
        coefficients, _ = _coefficients(head, pooled | first, count, inputs)
        ends = [
            (end, gradient)
            for end, gradient in zip(coefficients, gradients, strict=False)
            if end.requires_grad
        ]
        found = _gradients(ends, list(leaves.values()))
    reached = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    _returned[key] = list(reached)
    return [g.contiguous() for g in reached.values()]


def _gradients(ends: list[tuple[Tensor, Tensor]], leaves: list[Tensor]) -> Sequence[Tensor | None]:
    if not ends:
        return [None] * len(leaves)
    outputs, gradients = zip(*ends, strict=True)
    return torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
