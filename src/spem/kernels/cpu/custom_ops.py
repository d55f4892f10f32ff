"""The compiled passes as custom operators, which `torch.compile` calls as they are.

Inductor lowers the backward passes of extrema badly, so a network that its user compiles whole and
trains takes these passes, too; what lies between them is traced and compiled with the rest.

As in `autograd`, the gradient of the feature map is written once: the recalibration hands its own
to the pooling without the scale, as the gradient of an output that stands for the feature map and
occupies no memory, and the scale as that of a second one.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from spem.kernels.backend import Backend, PooledMap, Sigmoid
from spem.kernels.cpu.passes import COMPILED, why_not
from spem.kernels.memory_format import make_dense, match_format
from spem.kernels.reference import REFERENCE


def _names(var: bool, extrema: bool) -> tuple[str, ...]:
    wanted = ("mean", *(("var",) if var else ()), *(("max",) if extrema else ()))
    return COMPILED.pooled_names(wanted)


@torch.compiler.assume_constant_result
def works() -> bool:
    """Return whether the passes can be built on this machine, which tracing takes for granted."""
    return why_not() is None


class CustomOps(Backend):
    """The operators below, for a feature map on the CPU that is pooled and then recalibrated."""

    name = "compiled"  # the same passes, and so the same name in the records of runs
    rounds_once = True

    def pool(self, x: Tensor, wanted: tuple[str, ...]) -> PooledMap:
        """See `Backend.pool`."""
        if not wanted:
            return REFERENCE.pool(x, wanted)
        x, var, extrema = make_dense(x), "var" in wanted, "max" in wanted or "min" in wanted
        stand_in, stand_in_scale, stack = _pool(x, var, extrema)
        named = dict(zip(_names(var, extrema), stack.unbind(), strict=True))
        then = partial(_recalibrate_pooled, x, stand_in, stand_in_scale)
        return PooledMap({name: named[name] for name in wanted}, then)

    def recalibrate(self, x: Tensor, *options: Any, **more: Any) -> Tensor:
        """See `Backend.recalibrate`: the operators work together only."""
        return REFERENCE.recalibrate(x, *options, **more)


CUSTOM_OPS = CustomOps()


def _recalibrate_pooled(
    x: Tensor,
    stand_in: Tensor,
    stand_in_scale: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
    sigmoid: Sigmoid | None = None,
) -> Tensor:
    if sigmoid is not None:  # Inductor makes one pass of it, and one of its gradients
        return REFERENCE.recalibrate(x, scale, shift, residual, relu, sigmoid=sigmoid)
    residual = None if residual is None else match_format(residual, x)
    x = x.detach()  # its gradient flows through the pooling
    shift = None if shift is None else shift.contiguous()
    return _recalibrate(x, stand_in, stand_in_scale, scale.contiguous(), shift, residual, relu)


@custom_op("spem::pool", mutates_args=())
def _pool(x: Tensor, var: bool, extrema: bool) -> tuple[Tensor, Tensor, Tensor]:
    return *_stand_ins(x), COMPILED.run_pool(x, _names(var, extrema))


@_pool.register_fake
def _(x: Tensor, var: bool, extrema: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    number = len(_names(var, extrema))
    return *_stand_ins(x), x.new_empty((number, *x.shape[:2]), dtype=dtype)


def _stand_ins(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_zeros(1).expand(x.shape), x.new_zeros(1, dtype=wide).expand(x.shape[:2])


def _keep_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.var, ctx.extrema = inputs
    ctx.save_for_backward(x, output[2])


def _differentiate_pool(ctx: Any, grad: Tensor, scale: Tensor, grads: Tensor) -> tuple[Any, ...]:
    x, values = ctx.saved_tensors
    return _pool_backward(x, values, grads, grad, scale, ctx.var, ctx.extrema), None, None


_pool.register_autograd(_differentiate_pool, setup_context=_keep_pool)


@custom_op("spem::pool_backward", mutates_args=())
def _pool_backward(
    x: Tensor,
    values: Tensor,
    grads: Tensor,
    grad: Tensor,
    scale: Tensor,
    var: bool,
    extrema: bool,
) -> Tensor:
    names = _names(var, extrema)
    changed = dict(zip(names, grads.unbind(), strict=True))
    changed = {name: changed[name] for name in ("mean", "var", "max", "min") if name in changed}
    grad = match_format(grad, x)
    return COMPILED.run_input_gradient(x, names, values, changed, grad, (scale, None))


@_pool_backward.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@custom_op("spem::recalibrate", mutates_args=())
def _recalibrate(
    x: Tensor,
    stand_in: Tensor,
    stand_in_scale: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    return COMPILED.run_recalibrate(x, (scale, shift), residual, relu)


@_recalibrate.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _keep_recalibrate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, scale, shift, residual, relu = inputs
    ctx.shifts, ctx.adds = shift is not None, residual is not None
    ctx.save_for_backward(x, scale, output if relu else None)


def _differentiate_recalibrate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale, out = ctx.saved_tensors
    sums, *masked = _sums(match_format(grad, x), out, x)
    d = masked[0] if masked else grad
    dscale, dshift = sums.unbind()
    shift, added = dshift if ctx.shifts else None, d if ctx.adds else None
    return None, d, scale, dscale.to(scale.dtype), shift, added, None


_recalibrate.register_autograd(_differentiate_recalibrate, setup_context=_keep_recalibrate)


@custom_op("spem::sums", mutates_args=())
def _sums(grad: Tensor, out: Tensor | None, x: Tensor) -> list[Tensor]:
    d, sums = COMPILED.run_sums(grad, out, x, (None, None))
    return [sums] if out is None or d is None else [sums, d]


@_sums.register_fake
def _(grad: Tensor, out: Tensor | None, x: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = x.new_empty((2, *x.shape[:2]), dtype=dtype)
    return [sums] if out is None else [sums, torch.empty_like(x)]
