"""Pooling and recalibration as two differentiable operations whose gradients meet in one pass.

Between them anything may happen to the pooled values, under autograd. The map goes through the
pooling to the recalibration, whose gradient of it is handed back unscaled; the pooling multiplies
it by the scale while it adds its own, so that the map's gradient is written once.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spem.kernels.memory_format import dense, like

Values = dict[str, Tensor]


class Linked:
    """A pooled map and its recalibration, by the passes of one implementation.

    Args:
        ops: the implementation: a module with `pool`, `recalibrate`, `sums`, `input_gradient`.
        x: (N, C, H, W), not empty.
        wanted: the statistics to pool.

    Attributes:
        values: the statistics by name, each (N, C), differentiable.
    """

    def __init__(self, ops: ModuleType, x: Tensor, wanted: tuple[str, ...]):
        self._ops = ops
        # The nodes of the graph share this and not the object itself, which holds the graph.
        self._link: dict[str, Tensor] = {}
        self._x, *values = _Pool.apply(self._link, ops, wanted, dense(x))
        self.values = dict(zip(wanted, values, strict=True))

    def recalibrate(
        self,
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(scale·x + shift + residual), in memory of its own; to be called once."""
        residual = None if residual is None else like(self._x, residual)
        return _Recalibrate.apply(self._link, self._ops, relu, self._x, scale, shift, residual)


def recalibrate(
    ops: ModuleType,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """Recalibrate a map that was not pooled by `Linked`."""
    x = dense(x)
    residual = None if residual is None else like(x, residual)
    return _Recalibrate.apply(None, ops, relu, x, scale, shift, residual)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, link: dict[str, Tensor], ops: ModuleType, wanted: tuple[str, ...], x: Tensor):
        values = ops.pool(x, wanted) if wanted else {}
        ctx.set_materialize_grads(False)
        ctx.link, ctx.ops, ctx.wanted, ctx.names = link, ops, wanted, tuple(values)
        ctx.save_for_backward(x, *values.values())
        return x, *(values[name] for name in wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *grads: Tensor | None):
        x, *saved = ctx.saved_tensors
        values = dict(zip(ctx.names, saved, strict=True))
        named = zip(ctx.wanted, grads, strict=True)
        gradients = {name: value for name, value in named if value is not None}
        grad = None if grad is None else like(x, grad)
        return None, None, None, ctx.ops.input_gradient(x, values, gradients, grad, **ctx.link)


class _Recalibrate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        link: dict[str, Tensor] | None,
        ops: ModuleType,
        relu: bool,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
    ):
        out = ops.recalibrate(x, scale, shift, residual, relu)
        ctx.link, ctx.ops = link, ops
        ctx.save_for_backward(x, scale, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, scale, out = ctx.saved_tensors
        _, _, _, needs_x, needs_scale, needs_shift, needs_residual = ctx.needs_input_grad
        d, dscale, dshift = ctx.ops.sums(like(x, grad), out, x)
        dx = None
        if needs_x and ctx.link is None:
            dx = ctx.ops.input_gradient(x, {}, {}, d, scale)
        elif needs_x:
            # Not the gradient of x yet: `_Pool` multiplies by the scale, which is detached since
            # the link must not hold the graph that holds the link.
            ctx.link["scale"], dx = scale.detach(), d
        dscale = dscale.to(scale.dtype) if needs_scale else None
        dshift = dshift if needs_shift else None
        return None, None, None, dx, dscale, dshift, d if needs_residual else None
