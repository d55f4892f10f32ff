"""The excitation of a norm, alone or with its gate, as a function that is compiled."""

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor, nn

from spem.functional import STATISTICS, Pooled
from spem.gates.affine import merge_moments, normalise, resolve_ties, update_running
from spem.gates.compiled import cached_excitation, call_with, compilable, kind_of, tensors_of
from spem.gates.gate import Gate
from spem.kernels.fused import Coefficients, Excitation, Values, number
from spem.kernels.reference import upcast


def norm_excitation(norm: nn.BatchNorm2d, gate: Gate | None) -> Excitation | None:
    """Return the excitation of a norm: the coefficients of its affine map, times the multipliers.

    Args:
        norm: in training mode its momentum must be a number.
        gate: of the norm; None for the normalisation alone.

    Returns:
        The excitation; None where the gate is not `compilable`.
    """
    return cached_excitation(norm, partial(_make_excitation, norm, gate))


def _make_excitation(norm: nn.BatchNorm2d, gate: Gate | None) -> Excitation | None:
    if gate is not None and not compilable(gate):
        return None
    by_batch = norm.training or norm.running_mean is None
    tracked = norm.training and norm.track_running_stats and norm.running_mean is not None
    wanted = {"mean", "var"} if by_batch else set()
    options = (by_batch, tracked, norm.affine, norm.eps, norm.momentum)
    tensors: list[Any] = [norm.weight, norm.bias] if norm.affine else []
    if tracked or not by_batch:
        tensors += [norm.running_mean, norm.running_var]
    own = len(tensors)
    key: tuple[Hashable, ...] = ("norm", options)
    if gate is not None:
        wanted |= set(gate.statistics)
        tensors += tensors_of(gate)
        key += (kind_of(gate),)
    alive = None if gate is None else ref(gate)

    def function(values: Values, count: Any, given: Sequence[Tensor]) -> Coefficients:
        scale, shift, bias, updates = _normalise(options, values, count, given[:own])
        gate: Any = None if alive is None else alive()
        if gate is None:
            return Coefficients(scale, shift, updates)
        pooled = Pooled.of(values, count)
        if not gate.reads_input:
            pooled = resolve_ties(pooled, values.get("first"), scale)
        (scale, shift), written = call_with(
            gate, "coefficients", given[own:], pooled, scale, shift, bias
        )
        updates |= {own + index: value for index, value in written.items()}
        return Coefficients(scale, shift, updates)

    order = tuple(name for name in STATISTICS if name in wanted)
    return Excitation(function, number(key), order, tensors)


def _normalise(
    options: tuple[Any, ...], values: Values, count: Any, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[int, Tensor]]:
    """Return scale, shift and bias of a norm, (C,), and the updates of its running statistics."""
    by_batch, tracked, affine, eps, momentum = options
    weight, bias = tensors[:2] if affine else (None, None)
    running = tensors[2:] if affine else tensors
    updates: dict[int, Tensor] = {}
    if by_batch:
        mean, var = merge_moments(values["mean"], values["var"], differentiate=False)
        if tracked:
            seen = values["mean"].shape[0] * count
            observed = (mean, var * (seen / (seen - 1)))
            for index, (old, new) in enumerate(zip(running, observed, strict=True)):
                updates[2 * affine + index] = update_running(old, new, momentum)
    else:
        mean, var = map(upcast, running)
    return *normalise(mean, var, weight, bias, eps), updates
