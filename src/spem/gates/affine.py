"""Batch normalisation, with a gate behind or without, as the head of a compiled segment."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from spem.functional import STATISTICS
from spem.gates.compiled import (
    call_with,
    compilable,
    head_of,
    identity,
    pooled_from,
    tensors_of,
)
from spem.gates.gate import Gate
from spem.kernels.fused import Coefficients, Head, Values, number
from spem.kernels.reference import upcast


def norm_head(norm: nn.BatchNorm2d, gate: Gate | None) -> Head | None:
    """Return the head of a norm: the coefficients of its affine map, times the gate's multipliers.

    Args:
        norm: in training mode its momentum must be a number.
        gate: of the norm; None for the normalisation alone, where the gate does not fuse
            with its norm.

    Returns:
        The head; None where the gate is not compilable.
    """
    return head_of(norm, partial(_make_head, norm, gate))


def _make_head(norm: nn.BatchNorm2d, gate: Gate | None) -> Head | None:
    if gate is not None and not compilable(gate):
        return None
    batch = norm.training or norm.running_mean is None
    tracked = norm.training and norm.track_running_stats and norm.running_mean is not None
    wanted = {"mean", "var"} if batch else set()
    options = (batch, tracked, norm.affine, norm.eps, norm.momentum)
    tensors: list[Any] = [norm.weight, norm.bias] if norm.affine else []
    if tracked or not batch:
        tensors += [norm.running_mean, norm.running_var]
    own = len(tensors)
    key: tuple[Hashable, ...] = ("norm", options)
    if gate is not None:
        wanted |= set(gate.statistics)
        tensors += tensors_of(gate)
        key += (identity(gate),)
    alive = None if gate is None else ref(gate)

    def function(values: Values, count: Any, given: Sequence[Tensor]) -> Coefficients:
        scale, shift, bias, updates = _normalise(options, values, count, given[:own])
        gate: Any = None if alive is None else alive()
        if gate is None:
            return Coefficients(scale, shift, updates)
        if not gate.reads_input:
            values = _at_first_position(values, scale)
        pooled = pooled_from(values, count)
        (scale, shift), written = call_with(
            gate, gate.coefficients, given[own:], pooled, scale, shift, bias
        )
        updates |= {own + index: value for index, value in written.items()}
        return Coefficients(scale, shift, updates)

    order = tuple(name for name in STATISTICS if name in wanted)
    return Head(function, number(key), order, tensors)


def _normalise(
    options: tuple[Any, ...], values: Values, count: Any, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[int, Tensor]]:
    """Return scale, shift and bias of a norm, (C,), and the updates of its running statistics."""
    batch, tracked, affine, eps, momentum = options
    weight, bias = tensors[:2] if affine else (None, None)
    running = tensors[2:] if affine else tensors
    updates: dict[int, Tensor] = {}
    if batch:
        means, variances = values["mean"], values["var"]
        mean = means.mean(0)
        # The sum of squares has no slope in its own mean.
        var = (variances + (means - mean.detach()).square()).mean(0)
        if tracked:
            seen = means.shape[0] * count
            observed = (mean, var * (seen / (seen - 1)))
            index = 2 if affine else 0
            for place, (old, new) in enumerate(zip(running, observed, strict=True), start=index):
                updates[place] = (old + momentum * (new - old)).to(old.dtype)
    else:
        mean, var = map(upcast, running)
    weight, bias = (None if t is None else upcast(t) for t in (weight, bias))
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    bias = torch.zeros_like(scale) if bias is None else bias
    return scale, bias - mean * scale, bias, updates


def _at_first_position(values: Values, scale: Tensor) -> Values:
    """Take both extrema from the first position where a scale of 0 ties all of them.

    Their value has no influence there, so only a backward pass, which is given "first", needs it.
    """
    if not {"first", "max", "min"} <= values.keys():
        return values
    flat = scale == 0
    moved = {name: torch.where(flat, values["first"], values[name]) for name in ("max", "min")}
    return values | moved
