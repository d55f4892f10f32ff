"""Pooling, excitation and recalibration as one differentiable operation, the excitation compiled.

The excitation works on (N, C) tensors alone. It is differentiated by autograd, once, while it is
compiled: one compiled function forward, one backward.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from itertools import count as count_from_zero
from math import prod
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor

from spem.kernels import inductor, reference
from spem.kernels.autograd import (
    PassesBackend,
    Recalibration,
    Values,
    differentiate_recalibration,
    keep_for_backward,
    keep_needed,
    list_coefficients,
    refuse_batched,
)
from spem.kernels.backend import Backend, Sigmoid
from spem.kernels.memory_format import make_dense, match_format


class Coefficients(NamedTuple):
    """What an excitation returns: the coefficients of `Backend.recalibrate`.

    Attributes:
        scale: (N, C), or (C,) for all images; None is 1, beside a sigmoid.
        shift: in the shape of scale, or None.
        updates: new contents of some of the excitation's tensors, by their index.
        sigmoid: of tensors (N, C), or (C,) for all images; or None.
    """

    scale: Tensor | None
    shift: Tensor | None
    updates: dict[int, Tensor]
    sigmoid: Sigmoid | None = None


class Excitation(NamedTuple):
    """A pure function from pooled values to coefficients, which can be compiled.

    Attributes:
        function: from pooled values, the number of positions (1, or a tensor ()) and the tensors to
            coefficients. In a backward pass the values also hold "first", those at position 0, if
            "max" is wanted.
        key: equal for two excitations only where their functions are.
        wanted: the statistics that it reads.
        tensors: parameters and buffers; their sizes follow from the key and C.
    """

    function: Callable[[Values, Any, Sequence[Tensor]], Coefficients]
    key: Hashable
    wanted: tuple[str, ...]
    tensors: Sequence[Tensor]


# The keys of all excitations, by which they are numbered: nested tuples are slow to look up.
_numbers: dict[Hashable, int] = {}
_next = count_from_zero()


def number(key: Hashable) -> int:
    """Return a key that is as unique as the given one, and hashed at once."""
    # Nothing of this can be interrupted by another thread.
    return _numbers.setdefault(key, next(_next))


def serves(backend: Backend) -> TypeGuard[PassesBackend]:
    """Return whether `apply` runs on a backend."""
    return isinstance(backend, PassesBackend) and backend.compiles_excitations()


def apply(
    backend: PassesBackend,
    excitation: Excitation,
    x: Tensor,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
    owner: object = None,
) -> Tensor:
    """Recalibrate a feature map, see `Backend.recalibrate`, by the coefficients of an excitation.

    Args:
        backend: runs the passes over the feature map.
        excitation: gives the coefficients.
        x: (N, C, H, W), not empty.
        residual: in the shape and dtype of x, or None.
        relu: whether negative results become 0.
        overwrite: whether the result may take the memory of x where no gradient is asked for.
        owner: the gate, which lives as long as the graph: the first backward pass of its kind
            compiles a function that asks it.
    """
    x = make_dense(x)
    residual = None if residual is None else match_format(residual, x)
    if torch.is_grad_enabled():
        return _Fused.apply(backend, excitation, owner, relu, x, residual, *excitation.tensors)
    return _run(backend, excitation, relu, x, residual, excitation.tensors, overwrite)[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        backend: PassesBackend,
        excitation: Excitation,
        owner: object,
        relu: bool,
        x: Tensor,
        residual: Tensor | None,
        *tensors: Tensor,
    ):
        out, coefficients, stack = _run(backend, excitation, relu, x, residual, tensors)
        ctx.backend, ctx.excitation, ctx.owner = backend, excitation, owner
        kept = keep_for_backward(coefficients)
        ctx.number = len(kept)
        ctx.save_for_backward(x, out if relu else None, stack, *kept, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, out, stack, *saved = ctx.saved_tensors
        coefficients, tensors = tuple(saved[: ctx.number]), saved[ctx.number :]
        backend, excitation = ctx.backend, ctx.excitation
        if torch.is_grad_enabled():
            found = _differentiate_by_reference(excitation, x, tensors, out, grad)
            return None, None, None, None, *keep_needed(found, ctx.needs_input_grad[4:])
        refuse_batched(grad)
        _, _, _, _, needs_x, needs_residual, *needs = ctx.needs_input_grad
        trained = tuple([i for i, needed in enumerate(needs) if needed])
        grad = match_format(grad, x)
        d, sums = backend.run_sums(grad, out, x, coefficients, needs_residual)
        dimensions = cast(Tensor, coefficients[0]).dim()
        found = _differentiate(backend, excitation, trained, x, stack, tensors, dimensions, sums)
        dx = None
        if needs_x:
            rest = (grad, coefficients, out) if d is None else (d, coefficients)
            values = {n: found[n] for n in excitation.wanted if found.get(n) is not None}
            dx = backend.run_input_gradient(x, excitation.wanted, stack, values, *rest)
        dresidual = d if needs_residual else None
        return None, None, None, None, dx, dresidual, *map(found.get, range(len(tensors)))


def _run(
    backend: PassesBackend,
    excitation: Excitation,
    relu: bool,
    x: Tensor,
    residual: Tensor | None,
    tensors: Sequence[Tensor],
    overwrite: bool = False,
) -> tuple[Tensor, Recalibration, Tensor | None]:
    """Return the result, the coefficients and the stack of pooled values, if there are any."""
    stack = backend.run_pool(x, excitation.wanted) if excitation.wanted else None
    n, c, *size = x.shape
    count = prod(size)
    key = ("forward", backend.name, excitation.key, excitation.wanted, count == 1)
    function = partial(_compute_coefficients, backend, excitation, count == 1)
    pooled = [] if stack is None else [stack]
    rest = [_as_tensor(count, x.device), *tensors]
    found = tuple(inductor.call(function, key, pooled, rest, n, c))
    coefficients = found if len(found) > 1 else (*found, None)
    out = backend.run_recalibrate(x, coefficients, residual, relu, overwrite)
    return out, coefficients, stack


@cache
def _as_tensor(count: int, device: torch.device) -> Tensor:
    return torch.tensor(count, dtype=torch.float64, device=device)


def _compute_coefficients(
    backend: PassesBackend, excitation: Excitation, single: bool, *given: Tensor
) -> list[Tensor]:
    """Return the coefficients, and update the excitation's tensors (a function to compile)."""
    values, (count, *tensors) = _split(backend, excitation, given)
    values = {name: values[name] for name in excitation.wanted}
    coefficients, updates = _broadcast(excitation, values, 1 if single else count, tensors)
    for index, value in updates.items():
        tensors[index].copy_(value)
    return coefficients


def _split(
    backend: PassesBackend, excitation: Excitation, given: Sequence[Tensor]
) -> tuple[Values, Sequence[Tensor]]:
    """Return the pooled values by name, of their stack if there is one, and what follows it."""
    if not excitation.wanted:
        return {}, given
    names = backend.pooled_names(excitation.wanted)
    return dict(zip(names, given[0], strict=True)), given[1:]


def _broadcast(
    excitation: Excitation, values: Values, count: Tensor | int, tensors: Sequence[Tensor]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Return the coefficients of an excitation in one shape, contiguous, and its updates."""
    scale, shift, updates, sigmoid = excitation.function(values, count, tensors)
    given = [t for t in list_coefficients(scale, shift, sigmoid) if t is not None]
    given = torch.broadcast_tensors(*given)
    # What is (1, C) is for all images. Of no pooled values it is for all, too.
    images = [next(iter(values.values()))] if values and given[0].dim() == 2 else []
    expanded = torch.broadcast_tensors(*given, *images)[: len(given)]
    expanded = expanded if values else [t.flatten() for t in expanded]
    return [t.contiguous() for t in expanded], updates


def _differentiate(
    backend: PassesBackend,
    excitation: Excitation,
    trained: tuple[int, ...],
    x: Tensor,
    stack: Tensor | None,
    tensors: Sequence[Tensor],
    dimensions: int,
    sums: Tensor,
) -> dict[str | int, Tensor | None]:
    """Return the gradients of the pooled values, by name, and of trained tensors, by index."""
    if not excitation.wanted and not trained:
        return {}
    n, c, *size = x.shape
    count = prod(size)
    key = ("backward", backend.name, excitation.key, excitation.wanted, trained, count == 1)
    function = partial(_compute_gradients, backend, excitation, trained, count == 1, dimensions)
    pooled = [sums] if stack is None else [stack, sums]
    gradients = inductor.call(function, key, pooled, [_as_tensor(count, x.device), *tensors], n, c)
    return dict(zip((*excitation.wanted, *trained), gradients, strict=True))


def _compute_gradients(
    backend: PassesBackend,
    excitation: Excitation,
    trained: tuple[int, ...],
    single: bool,
    dimensions: int,
    *given: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of all wanted values, then of the trained tensors; None for zero.

    A function to compile. `dimensions` is 2 for a scale of each image, 1 for one of all images.
    """
    values, (sums, count, *tensors) = _split(backend, excitation, given)
    gradients = list(sums if dimensions == 2 else sums.sum(1))
    with torch.enable_grad():
        pooled = {name: values[name].detach().requires_grad_() for name in excitation.wanted}
        inputs = [t.detach().requires_grad_(i in trained) for i, t in enumerate(tensors)]
        first = {"first": values["first"]} if "first" in values else {}
        count = 1 if single else count
        coefficients, _ = _broadcast(excitation, pooled | first, count, inputs)
        pairs = zip(coefficients, gradients, strict=False)
        reached = [(end, gradient) for end, gradient in pairs if end.requires_grad]
        leaves = [*pooled.values(), *(inputs[i] for i in trained)]
        if not reached:
            return [None] * len(leaves)
        ends, along = zip(*reached, strict=True)
        found = torch.autograd.grad(ends, leaves, along, allow_unused=True)
    return [None if g is None else g.contiguous() for g in found]


def _differentiate_by_reference(
    excitation: Excitation, x: Tensor, tensors: Sequence[Tensor], out: Tensor | None, grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of x, the residual and the tensors as differentiable functions."""
    with torch.autocast(x.device.type, enabled=False):
        values = reference.REFERENCE.pool(x, excitation.wanted).values
        first = {"first": reference.upcast(x[:, :, 0, 0].detach())} if "max" in values else {}
        count = x.shape[2] * x.shape[3]
        coefficients, _ = _broadcast(excitation, values | first, count, tensors)
        rest = [None] if len(coefficients) == 1 else []
        given = (*coefficients, *rest)
        dx, dresidual, *others = differentiate_recalibration(x, given, out, grad)
    pairs = zip(coefficients, others, strict=False)
    ends = [(end, gradient) for end, gradient in pairs if end.requires_grad]
    leaves = [(i, t) for i, t in enumerate([x, *tensors]) if t.requires_grad]
    found: list[Tensor | None] = [None] * (1 + len(tensors))
    if ends and leaves:
        gradients = torch.autograd.grad(
            [end for end, _ in ends],
            [leaf for _, leaf in leaves],
            [gradient for _, gradient in ends],
            create_graph=True,
            allow_unused=True,
        )
        for (i, _), gradient in zip(leaves, gradients, strict=True):
            found[i] = gradient
    found[0] = dx if found[0] is None or dx is None else dx + found[0]
    return [found[0], dresidual, *found[1:]]
