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
from typing import Any

import torch
from torch import Tensor

from spem.kernels import reference
from spem.kernels.backend import Backend, PooledMap
from spem.kernels.memory_format import make_dense, match_format
from spem.kernels.tracing import is_batched

# Tensors (N, C) by the name of their statistic.
Values = dict[str, Tensor]


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
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(scale·x + shift + residual), in the memory of x with `overwrite`.

        scale and shift are (N, C), or (C,) for all images.
        """

    @abstractmethod
    def run_sums(
        self, grad: Tensor, out: Tensor | None, x: Tensor, masked: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Return the gradient before the ReLU, and those of scale and shift, (2, N, C).

        Args:
            grad: of the recalibrated feature map.
            out: the recalibrated feature map; None where there was no ReLU.
            x: the feature map that was recalibrated.
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
        scale: Tensor | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of x from those of its statistics and of its recalibration.

        Args:
            x: the feature map.
            wanted: the statistics that were pooled.
            stack: what `run_pool` returned; None if nothing was pooled.
            gradients: of the statistics, each (N, C); one that is left out is 0.
            grad: of the recalibrated feature map, before the ReLU, or behind it if `out` is given.
            scale: by which x was recalibrated, (N, C) or (C,).
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
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """See `Backend.recalibrate`; the memory of x is not taken."""
        return _recalibrate(None, self, make_dense(x), scale, shift, residual, relu)


def _recalibrate(
    link: dict[str, Any] | None,
    backend: PassesBackend,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    residual = None if residual is None else match_format(residual, x)
    return _Recalibrate.apply(link, backend, relu, x, scale, shift, residual)


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
        scale = ctx.link.pop("scale", None)
        if torch.is_grad_enabled():
            return None, None, None, _differentiate_pooling(x, gradients, grad)
        refuse_batched(grad, *grads)
        grad = None if grad is None else match_format(grad, x)
        dx = ctx.backend.run_input_gradient(x, ctx.wanted, stack, gradients, grad, scale)
        return None, None, None, dx


class _Recalibrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        link: dict[str, Any] | None,
        backend: PassesBackend,
        relu: bool,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
    ):
        out = backend.run_recalibrate(x, scale, shift, residual, relu)
        ctx.link, ctx.backend = link, backend
        ctx.save_for_backward(x, scale, out if relu else None)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale, out = ctx.saved_tensors
        _, _, _, needs_x, needs_scale, needs_shift, needs_residual = ctx.needs_input_grad
        if torch.is_grad_enabled():
            if ctx.link is not None:
                # What comes back to x from here is scaled: nothing else may be left to scale.
                ctx.link["twice"] = True
            found = differentiate_recalibration(x, scale, out, grad)
            return None, None, None, *keep_needed(found, ctx.needs_input_grad[3:])
        refuse_batched(grad)
        d, sums = ctx.backend.run_sums(match_format(grad, x), out, x)
        dx = None
        if needs_x and (ctx.link is None or "twice" in ctx.link):
            dx = ctx.backend.run_input_gradient(x, (), None, {}, d, scale)
        elif needs_x:
            # Not the gradient of x yet: `_Pool` multiplies by the scale, which is detached since
            # the link must not hold the graph that holds the link.
            ctx.link["scale"], dx = scale.detach(), d
        dscale = sums[0].to(scale.dtype) if needs_scale else None
        dshift = sums[1] if needs_shift else None
        return None, None, None, dx, dscale, dshift, d if needs_residual else None


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
    x: Tensor, scale: Tensor, out: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale, shift and residual as differentiable functions.

    Args:
        x: the feature map that was recalibrated.
        scale: (N, C) or (C,).
        out: the recalibrated feature map; None where there was no ReLU.
        grad: the gradient of the recalibrated feature map.
    """
    d = grad if out is None else grad * (out > 0)
    wide, images = reference.upcast(d), (0,) if scale.dim() == 1 else ()
    dscale = (wide * x).sum((*images, 2, 3)).to(scale.dtype)
    dx = (wide * scale[..., None, None]).to(x.dtype)
    return dx, dscale, wide.sum((*images, 2, 3)), d
