"""Own passes over feature maps as differentiable operations whose gradients meet in one pass.

Between pooling and recalibration anything may happen to the pooled values, under autograd. The
feature map goes through the pooling to the recalibration, which hands the gradient back without
its scale; the pooling multiplies by the scale while it adds the gradients of the pooled values, so
that the gradient of the feature map is written once.

Where the gradients are themselves to be differentiated (`create_graph=True`), they are computed by
the reference's operations under autograd instead.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from spem.kernels import reference
from spem.kernels.backend import Backend, PooledMap, Sigmoid
from spem.kernels.memory_format import make_dense, match_format
from spem.kernels.tracing import is_batched

# Tensors (N, C) by the name of their statistic.
Values = dict[str, Tensor]
# Scale and shift, also slope and offset of a sigmoid, also its square and centre: all (N, C), or
# all (C,) for all images. None: a shift without a sigmoid, or a scale for passes that need none.
Recalibration = tuple[Tensor | None, ...]
Six = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


class PassesBackend(Backend):
    """A backend with own passes over dense feature maps, forward and backward.

    A pass reads x, (N, C, H, W) in one of the two memory formats, and writes feature maps of the
    same format and (N, C) tensors in float32 or wider. None of them knows of autograd.
    """

    rounds_once = True

    def compiles_excitations(self) -> bool:
        """Return whether Inductor compiles functions of tensors on the backend's device."""
        return True

    @abstractmethod
    def pooled_names(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of what `run_pool` returns where some statistics are wanted, in order.

        Beside them there may be others: with extrema also their positions, "argmax" and "argmin",
        and the values at position 0, "first".
        """

    @abstractmethod
    def run_pool(self, x: Tensor, wanted: tuple[str, ...]) -> Tensor:
        """Read x once and return what `pooled_names` names, in a stack (k, N, C)."""

    @abstractmethod
    def run_recalibrate(
        self,
        x: Tensor,
        coefficients: Recalibration,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """Return the recalibrated x, see `Backend.recalibrate`, in its memory with `overwrite`."""

    @abstractmethod
    def run_sums(
        self,
        grad: Tensor,
        out: Tensor | None,
        x: Tensor,
        coefficients: Recalibration,
        masked: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """Return the gradient before the ReLU, and those of the coefficients, (2, 4 or 6, N, C).

        Args:
            grad: of the recalibrated feature map.
            out: the recalibrated feature map; None where there was no ReLU.
            x: the feature map that was recalibrated.
            coefficients: by which; without a sigmoid their number alone counts.
            masked: whether the first is wanted; without, it may be None.
        """

    @abstractmethod
    def run_input_gradient(
        self,
        x: Tensor,
        wanted: tuple[str, ...],
        stack: Tensor | None,
        gradients: Values,
        grad: Tensor | None,
        coefficients: Recalibration,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of x from those of its statistics and of its recalibration.

        Args:
            x: the feature map.
            wanted: the statistics that were pooled.
            stack: what `run_pool` returned; None if nothing was pooled.
            gradients: of the statistics, each (N, C); one that is left out is 0.
            grad: of the recalibrated feature map, before the ReLU, or behind it if `out` is given.
            coefficients: by which x was recalibrated; a scale of None is 1. The shift counts with
                a sigmoid only.
            out: the recalibrated feature map, if `run_sums` returned no gradient before the ReLU.
        """

    def pool(self, x: Tensor, wanted: tuple[str, ...]) -> PooledMap:
        """See `Backend.pool`."""
        # The nodes of the graph share this and not the result, which holds the graph.
        link: dict[str, Any] = {}
        x, *values = _Pool.apply(link, self, wanted, make_dense(x))
        return PooledMap(
            dict(zip(wanted, values, strict=True)), partial(_recalibrate, link, self, x)
        )

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
        """See `Backend.recalibrate`; the memory of x is not taken."""
        x = make_dense(x)
        return _recalibrate(None, self, x, scale, shift, residual, relu, overwrite, sigmoid)


def list_coefficients(
    scale: Tensor | None, shift: Tensor | None, sigmoid: Sigmoid | None
) -> Recalibration:
    """Return the coefficients of a recalibration as passes take them, all of one shape."""
    if sigmoid is None:
        return scale, shift
    zeros = torch.zeros_like(sigmoid.offset)
    four = sigmoid if sigmoid.square is not None else sigmoid[:2]
    filled = (zeros if t is None else t for t in (shift, *four))
    return (torch.ones_like(zeros) if scale is None else scale, *filled)


def pad_coefficients(coefficients: Recalibration) -> Six:
    """Return the coefficients with None for those of a sigmoid that are not there."""
    return cast(Six, (*coefficients, *[None] * (6 - len(coefficients))))


def keep_for_backward(coefficients: Recalibration) -> Recalibration:
    """Return the coefficients without a shift that the backward pass does not need."""
    scale, *others = coefficients
    return (scale, *others) if len(others) > 1 else (scale, None)


def are_per_channel(coefficients: Recalibration) -> bool:
    """Return whether the coefficients are (C,), the same for all images."""
    return coefficients[0] is not None and coefficients[0].dim() == 1


def _recalibrate(
    link: dict[str, Any] | None,
    backend: PassesBackend,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
    sigmoid: Sigmoid | None = None,
) -> Tensor:
    residual = None if residual is None else match_format(residual, x)
    coefficients = list_coefficients(scale, shift, sigmoid)
    return _Recalibrate.apply(link, backend, relu, x, residual, *coefficients)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, link, backend: PassesBackend, wanted: tuple[str, ...], x: Tensor):
        stack = backend.run_pool(x, wanted) if wanted else None
        ctx.set_materialize_grads(False)
        ctx.link, ctx.backend, ctx.wanted = link, backend, wanted
        ctx.save_for_backward(x, stack)
        if stack is None:
            return (x,)
        values = dict(zip(backend.pooled_names(wanted), stack.unbind(), strict=True))
        return x, *(values[name] for name in wanted)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *grads: Tensor | None):
        x, stack = ctx.saved_tensors
        named = zip(ctx.wanted, grads, strict=True)
        gradients = {name: value for name, value in named if value is not None}
        coefficients = ctx.link.pop("coefficients", (None, None))
        if torch.is_grad_enabled():
            return None, None, None, _differentiate_pooling(x, gradients, grad)
        refuse_batched(grad, *grads)
        grad = None if grad is None else match_format(grad, x)
        dx = ctx.backend.run_input_gradient(x, ctx.wanted, stack, gradients, grad, coefficients)
        return None, None, None, dx


class _Recalibrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        link: dict[str, Any] | None,
        backend: PassesBackend,
        relu: bool,
        x: Tensor,
        residual: Tensor | None,
        *coefficients: Tensor | None,
    ):
        out = backend.run_recalibrate(x, coefficients, residual, relu)
        ctx.link, ctx.backend = link, backend
        kept = keep_for_backward(coefficients)
        ctx.save_for_backward(x, out if relu else None, *kept)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, out, *kept = ctx.saved_tensors
        coefficients = tuple(kept)
        needs_x, needs_residual, *needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            if ctx.link is not None:
                # What comes back to x from here is scaled: nothing else may be left to scale.
                ctx.link["twice"] = True
            found = differentiate_recalibration(x, coefficients, out, grad)
            return None, None, None, *keep_needed(found, ctx.needs_input_grad[3:])
        refuse_batched(grad)
        d, sums = ctx.backend.run_sums(match_format(grad, x), out, x, coefficients)
        dx = None
        if needs_x and (ctx.link is None or "twice" in ctx.link):
            dx = ctx.backend.run_input_gradient(x, (), None, {}, d, coefficients)
        elif needs_x:
            # Not the gradient of x yet: `_Pool` takes the coefficients, which are detached since
            # the link must not hold the graph that holds the link.
            detached = (None if t is None else t.detach() for t in coefficients)
            ctx.link["coefficients"], dx = tuple(detached), d
        kinds = [sums.dtype if t is None else t.dtype for t in coefficients]
        found = [s.to(kind) for s, kind in zip(sums, kinds, strict=True)]
        return None, None, None, dx, d if needs_residual else None, *keep_needed(found, needs)


def refuse_batched(*gradients: Tensor | None) -> None:
    """Raise RuntimeError for gradients of several outputs at once, which no kernel can read.

    `torch.autograd.grad(…, is_grads_batched=True)` and `jacobian(…, vectorize=True)` give them.
    """
    if any(g is not None and is_batched(g) for g in gradients):
        raise RuntimeError(
            "kernels take no batched gradients (is_grads_batched, vectorize): write"
            ' `with spem.kernels.use("eager"):` around the forward pass, or use torch.func.jacrev'
        )


def keep_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients that are needed, and None for the others."""
    return [g if need else None for g, need in zip(gradients, needed, strict=True)]


def _differentiate_pooling(x: Tensor, gradients: Values, grad: Tensor | None) -> Tensor | None:
    """Return the gradient of x as a differentiable function; `grad` is that of its later use."""
    if not gradients:
        return grad
    pooled = reference.REFERENCE.pool(x, tuple(gradients)).values
    (dx,) = torch.autograd.grad(
        [*pooled.values()], x, [*gradients.values()], create_graph=True, allow_unused=True
    )
    return dx if grad is None or dx is None else dx + grad


def differentiate_recalibration(
    x: Tensor, coefficients: Recalibration, out: Tensor | None, grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of x, the residual and the coefficients as differentiable functions.

    Args:
        x: the feature map that was recalibrated.
        coefficients: by which; a shift that is not kept has a gradient all the same.
        out: the recalibrated feature map; None where there was no ReLU.
        grad: the gradient of the recalibrated feature map.
    """
    d, (scale, shift, *four) = grad if out is None else grad * (out > 0), coefficients
    scale = x.new_ones(x.shape[:2]) if scale is None else scale
    shift = torch.zeros_like(scale) if shift is None else shift
    given = [t for t in (x, scale, shift, *four) if t is not None]
    # Batched gradients come without recording. Views: what a coefficient comes from is constant.
    with torch.enable_grad():
        ends = [t.view_as(t).requires_grad_() for t in given]
        sigmoid = Sigmoid(*ends[3:]) if four else None
        result = reference.recalibrate(ends[0], ends[1], ends[2], None, False, sigmoid)
        dx, *others = torch.autograd.grad(result, ends, d, create_graph=True)
    return [dx, d, *others]
