"""The operations in eager mode: as in `reference`, with fewer passes over the feature map."""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from spem.kernels import reference
from spem.kernels.autograd import (
    differentiate_recalibration,
    keep_needed,
    list_coefficients,
)
from spem.kernels.backend import Backend, PooledMap, Sigmoid
from spem.kernels.reference import pool_mean, pool_var, upcast
from spem.kernels.tracing import is_batched

_COEFFICIENTS = ("scale", "shift", *Sigmoid._fields)
_MOMENTS = {"mean": pool_mean, "var": pool_var}


def _pool_without_gradient(name: str, x: Tensor) -> Tensor:
    if name in _MOMENTS:
        return _MOMENTS[name](x)
    return upcast(x.amax((2, 3)) if name == "max" else x.amin((2, 3)))


class _Pool(torch.autograd.Function):
    """The feature map, its statistics and the positions of extrema; gradients add up in one map."""

    @staticmethod
    def forward(x: Tensor, wanted: tuple[str, ...]):
        values, positions = [], []
        for name in wanted:
            if name in _MOMENTS:
                values.append(_MOMENTS[name](x))
            else:
                value, at = _extremum(x, name == "max")
                values.append(upcast(value))
                positions.append(at)
        return x.view_as(x), *values, *positions

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, wanted = inputs
        positions = output[1 + len(wanted) :]
        ctx.mark_non_differentiable(*positions)
        ctx.set_materialize_grads(False)
        ctx.wanted, ctx.shape, ctx.format = wanted, x.shape, _format(x)
        # An empty tensor keeps the dtype and the device of x, and none of its memory.
        ctx.save_for_backward(x if "var" in wanted else x.new_empty(0), *positions)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *grads: Tensor | None):
        x, *positions = ctx.saved_tensors
        of = dict(zip(ctx.wanted, grads, strict=False))
        count = ctx.shape[2] * ctx.shape[3]
        mean, var = of.get("mean"), of.get("var")
        total = x.new_zeros(1, 1, 1, 1) if grad is None else grad
        if mean is not None:
            total = total + (mean / count).to(x.dtype)[..., None, None]
        if var is not None:
            centred = upcast(x) - pool_mean(x)[..., None, None]
            factor = (2 / count * var)[..., None, None]
            total = torch.addcmul(upcast(total), centred, factor).to(x.dtype)
        total = total.expand(ctx.shape).contiguous(memory_format=ctx.format)
        if mean is None and var is None:
            total = total.clone()  # the incoming gradient may be in use elsewhere
        flat = total.view(*ctx.shape[:2], count)
        extrema = [of[name] for name in ctx.wanted if name not in _MOMENTS]
        for at, value in zip(positions, extrema, strict=True):
            if value is not None:
                flat.scatter_add_(2, at[..., None], value.to(x.dtype)[..., None])
        return total, None


class _Weigh(torch.autograd.Function):
    """(scale·x + shift)·sigmoid(x), of which the feature map and the sigmoid's values are kept."""

    @staticmethod
    def forward(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, *sigmoid: Any
    ) -> tuple[Tensor, Tensor]:
        wide = upcast(x)
        weight = _logits(wide, *sigmoid).sigmoid_()
        return (_affine(wide, scale, shift) * weight).to(x.dtype), weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor | None, _: None):
        x, *coefficients, weight = ctx.saved_tensors
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled() or is_batched(grad):
            gradients = _differentiate_weighing(x, coefficients, grad)
            return tuple(keep_needed(gradients, ctx.needs_input_grad))
        scale, shift, slope, _, square, centre = coefficients
        needs = dict(zip(_COEFFICIENTS, ctx.needs_input_grad[1:], strict=True))
        wide, d = upcast(x), upcast(grad)
        found: dict[str, Tensor] = {}
        total = d * weight
        if needs["scale"]:
            found["scale"] = (total * wide).sum((2, 3))
        if needs["shift"]:
            found["shift"] = total.sum((2, 3))
        # The gradient of the logits.
        inner = total * _affine(wide, scale, shift)
        inner = inner.addcmul_(inner, weight, value=-1)
        if scale is not None:
            total = total.mul_(scale[..., None, None])
        if needs["offset"]:
            found["offset"] = inner.sum((2, 3))
        if slope is not None:
            total = total.addcmul_(inner, slope[..., None, None])
            if needs["slope"]:
                found["slope"] = (inner * wide).sum((2, 3))
        if square is not None:
            centred = wide - centre[..., None, None]
            inner = inner.mul_(centred)
            total = total.addcmul_(inner, square[..., None, None], value=2)
            if needs["centre"]:
                found["centre"] = -2 * square * inner.sum((2, 3))
            if needs["square"]:
                found["square"] = inner.mul_(centred).sum((2, 3))
        return total.to(x.dtype), *map(found.get, _COEFFICIENTS)


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return scale·x + shift, x itself where both are None."""
    x = x if scale is None else x * scale[..., None, None]
    return x if shift is None else x + shift[..., None, None]


def _logits(
    x: Tensor,
    slope: Tensor | None,
    offset: Tensor,
    square: Tensor | None,
    centre: Tensor | None,
) -> Tensor:
    """Return slope·x + offset + square·(x − centre)², in new memory."""
    if square is None or centre is None:
        logits = torch.zeros_like(x) if slope is None else x * slope[..., None, None]
        return logits.add_(offset[..., None, None])
    logits = (x - centre[..., None, None]).square_()
    logits = torch.addcmul(offset[..., None, None], logits, square[..., None, None], out=logits)
    return logits if slope is None else logits.addcmul_(x, slope[..., None, None])


def _differentiate_weighing(
    x: Tensor, coefficients: list[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of x and the coefficients as differentiable functions."""
    scale, shift, *four = coefficients
    filled = list_coefficients(scale, shift, Sigmoid(*cast(Any, four)))
    dx, _, *others = differentiate_recalibration(x, filled, None, grad)
    return [dx, *others, *[None] * (len(_COEFFICIENTS) - len(others))]


def _extremum(x: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the largest or smallest value of each channel and its first position, (N, C)."""
    if _format(x) is torch.channels_last:
        # It takes the first of equal values and hands NaN on, several times as fast as max.
        signed = x if largest else -x
        values, positions = F.max_pool2d(signed, x.shape[2:], return_indices=True)
        values, positions = values.flatten(1), positions.flatten(1)
        return values if largest else -values, positions
    flat = x.flatten(2)
    return flat.max(-1) if largest else flat.min(-1)


def _format(x: Tensor) -> torch.memory_format:
    """Return the memory format in which results for x are stored."""
    _, c, h, w = x.shape
    # By strides: under `vmap`, `is_contiguous` takes no other format.
    last = x.stride()[1:] == (1, w * c, c) and c > 1 and h * w > 1
    return torch.channels_last if last else torch.contiguous_format


class Eager(Backend):
    """PyTorch's operations with fewer passes over the feature map than `reference` takes."""

    name = "eager"

    def pool(self, x: Tensor, wanted: tuple[str, ...]) -> PooledMap:
        """See `Backend.pool`; the gradients of all statistics are added to one feature map."""
        if wanted and x.requires_grad and torch.is_grad_enabled():
            x, *found = _Pool.apply(x, wanted)
            values = dict(zip(wanted, found, strict=False))
        else:
            values = {name: _pool_without_gradient(name, x) for name in wanted}
        return PooledMap(values, partial(self.recalibrate, x))

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
        """See `Backend.recalibrate`."""
        if sigmoid is not None:
            out, _ = _Weigh.apply(x, scale, shift, *sigmoid)
            out = out if residual is None else out.add_(residual)
            return out.relu_() if relu else out
        overwrite = overwrite and not torch.is_grad_enabled()
        if x.dtype is torch.float16 and torch.is_grad_enabled():
            # The gradient of the scale is a sum over positions, beyond the range of float16.
            return reference.recalibrate(x, scale, shift, residual, relu)
        scale = cast(Tensor, scale).to(x.dtype)[:, :, None, None]
        added = residual if shift is None else shift.to(x.dtype)[:, :, None, None]
        if added is None:
            out = x.mul_(scale) if overwrite else x * scale
        elif torch.is_grad_enabled():
            # The backward pass of addcmul copies the feature map once more than that of a product.
            out = (x * scale).add_(added)
        else:
            out = torch.addcmul(added, x, scale, out=x if overwrite else None)
        if shift is not None and residual is not None:
            out = out.add_(residual)
        return out.relu_() if relu else out

    def prefers_own_norm(self, x: Tensor, gated: bool) -> bool:
        """See `Backend.prefers_own_norm`: `F.batch_norm` is faster in eager mode."""
        return False


EAGER = Eager()
