"""The excitation of a norm, alone or with its gate, as a function that is compiled."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor, nn

from spem.functional import STATISTICS, Pooled
from spem.gates.affine import merge_moments, norm_coefficients, resolve_ties, update_running
from spem.gates.excitation import cached_excitation, call_with, compilable, kind_of, tensors_of
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
    options = (by_batch, tracked, norm.affine, norm.eps, norm.momentum)
    tensors: list[Any] = [norm.weight, norm.bias] if norm.affine else []
    if tracked or not by_batch:
        tensors += [norm.running_mean, norm.running_var]
    alive = None if gate is None else ref(gate)
    function = partial(_find_coefficients, options, len(tensors), alive)
    key: tuple[Hashable, ...] = ("norm", options)
    wanted = {"mean", "var"} if by_batch else set()
    if gate is not None:
        tensors += tensors_of(gate)
        key += (kind_of(gate),)
        wanted |= set(gate.statistics)
    order = tuple(name for name in STATISTICS if name in wanted)
    return Excitation(function, number(key), order, tensors)


def _find_coefficients(
    options: tuple[Any, ...],
    own: int,
    alive: Callable[[], Gate | None] | None,
    values: Values,
    count: Any,
    tensors: Sequence[Tensor],
) -> Coefficients:
    """Return a and b of a norm, whose tensors are the first `own`, with its gate, if it has one."""
    scale, shift, bias, updates = _compute_norm(options, values, count, tensors[:own])
    gate = None if alive is None else alive()
    if gate is None:
        return Coefficients(scale, shift, updates)
    pooled = Pooled.of(values, count)
    if not gate.reads_input:
        pooled = resolve_ties(pooled, values.get("first"), scale)
    (scale, shift, sigmoid), written = call_with(
        gate, "coefficients", tensors[own:], pooled, scale, shift, bias
    )
    updates |= {own + index: value for index, value in written.items()}
    return Coefficients(scale, shift, updates, sigmoid)


def _compute_norm(
    options: tuple[Any, ...], values: Values, count: Any, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[int, Tensor]]:
    """Return scale, shift and bias of a norm, (C,), and the updates of its running statistics."""
    by_batch, tracked, affine, eps, momentum = options
    weight, bias = tensors[:2] if affine else (None, None)
    running = tensors[2:] if affine else tensors
    updates: dict[int, Tensor] = {}
    if by_batch:
        # Leaves are differentiated once; what has a history may be differentiated again.
        twice = not values["mean"].is_leaf
        mean, var = merge_moments(values["mean"], values["var"], differentiate=twice)
        if tracked:
            seen = values["mean"].shape[0] * count
            observed = (mean, var * (seen / (seen - 1)))
            for index, (old, new) in enumerate(zip(running, observed, strict=True)):
                updates[2 * affine + index] = update_running(old, new, momentum)
    else:
        mean, var = map(upcast, running)
    return *norm_coefficients(mean, var, weight, bias, eps), updates
