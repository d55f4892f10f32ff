"""Excitations of gates as functions that are compiled once for all gates of a kind."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from operator import is_
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spem.functional import Pooled
from spem.gates.affine import norm_coefficients, update_running
from spem.gates.layers import BatchNorm1d, BatchNorm2d, Conv1d
from spem.kernels.fused import Coefficients, Excitation, Values, number
from spem.kernels.reference import upcast

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_multiplier_hooks")
_PLAIN = (bool, int, float, str, type(None))
# An own gate may have PyTorch's.
_NORMS = (nn.BatchNorm1d, BatchNorm1d, BatchNorm2d)
_CONVS = (nn.Conv1d, Conv1d)
# Longer convolutions are left to the library: each tap is a line of what is compiled.
_MOST_TAPS = 16


def _is_plain(value: object) -> bool:
    return all(isinstance(v, _PLAIN) for v in (value if isinstance(value, tuple) else [value]))


def compilable(gate: Any) -> bool:
    """Return whether a gate's multipliers may be computed by a function that is compiled only once.

    Its class itself must say so (`Gate.traceable`): nobody knows what a derived one adds.
    """
    norms = (m for m in gate.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return (
        vars(type(gate)).get("traceable", False)
        and gate.reads_statistics_only
        and not gate._multiplier_hooks
        and not {"excite", "logits"} & vars(gate).keys()
        and not any(m._forward_hooks or m._forward_pre_hooks for m in gate.modules())
        and all(type(norm) in _NORMS for norm in norms)
    )


class _Cached:
    """The excitation of a module, and what it was made from but for the contents of tensors.

    It does not refer to the module, which would never be freed.
    """

    def __init__(self, excitation: Excitation, owner: nn.Module):
        self.excitation = excitation
        self._parts = [*owner.modules()][1:]
        self._names = [
            [name for name, value in vars(module).items() if _is_plain(value)]
            for module in (owner, *self._parts)
        ]
        self._options, self._objects = self._read(owner)
        self._shapes = [t.shape for t in excitation.tensors]

    def _read(self, owner: nn.Module) -> tuple[list[Any], list[Any]]:
        """Return what must be equal and what must be the same object."""
        options, objects = [], []
        for module, names in zip((owner, *self._parts), self._names, strict=True):
            own = vars(module)
            options += map(own.get, names)
            options += map(len, (own, *(own.get(name, ()) for name in _HOOKS)))
            for place in ("_parameters", "_buffers", "_modules"):
                objects += own[place].values()
        return options, objects

    def holds(self, owner: nn.Module) -> bool:
        """Return whether no option, part or tensor was replaced, and no hook added."""
        options, objects = self._read(owner)
        tensors = self.excitation.tensors
        return (
            options == self._options
            and len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and [t.shape for t in tensors] == self._shapes
            and all(t.is_contiguous() for t in tensors)
        )


_cache: WeakKeyDictionary[nn.Module, _Cached] = WeakKeyDictionary()


def cached_excitation(owner: nn.Module, make: Callable[[], Excitation | None]) -> Excitation | None:
    """Return the excitation of a norm or a gate, made anew only where something was replaced.

    Args:
        owner: the module to which the excitation's tensors belong.
        make: returns the excitation, whose function must not refer to the owner, or None where the
            gate is not `compilable`.
    """
    cached = _cache.get(owner)
    if cached is not None and cached.holds(owner):
        return cached.excitation
    excitation = make()
    own = {id(t) for m in owner.modules() for t in (*m._parameters.values(), *m._buffers.values())}
    if excitation is not None and all(t.is_leaf and id(t) in own for t in excitation.tensors):
        _cache[owner] = _Cached(excitation, owner)
    else:
        _cache.pop(owner, None)
    return excitation


def gate_excitation(gate: Any) -> Excitation | None:
    """Return the excitation of a gate that stands alone: the scale is its multiplier.

    None where the gate is not `compilable`.
    """
    return cached_excitation(gate, partial(_make_excitation, gate))


def _make_excitation(gate: Any) -> Excitation | None:
    if not compilable(gate):
        return None
    alive = ref(gate)

    def function(values: Values, count: Any, tensors: Sequence[Tensor]) -> Coefficients:
        pooled = Pooled.of(values, count)
        (scale, shift, sigmoid), updates = call_with(alive(), "transform", tensors, pooled)
        return Coefficients(scale, shift, updates, sigmoid)

    key = ("gate", kind_of(gate))
    return Excitation(function, number(key), gate.statistics, tensors_of(gate))


def kind_of(gate: Any) -> Hashable:
    """Return a key that differs for gates that compute something else from the same tensors.

    It has None for sizes that are the number of channels: one function serves any number.
    """
    key: list[Hashable] = []
    for _, module in gate.named_modules(remove_duplicate=False):
        own = vars(module).items()
        plain = (v for k, v in own if _is_plain(v) and (module is not gate or k != "channels"))
        key.append((type(module), *plain))
    for name, tensor in _name_tensors(gate).items():
        key.append((name, *(None if size == gate.channels else size for size in tensor.shape)))
    return tuple(key)


def tensors_of(gate: Any) -> list[Tensor]:
    """Return the parameters and buffers of a gate, contiguous."""
    return [t.contiguous() for t in _name_tensors(gate).values()]


def _name_tensors(gate: nn.Module) -> dict[str, Tensor]:
    parameters = gate.named_parameters(remove_duplicate=False)
    return dict([*parameters, *gate.named_buffers(remove_duplicate=False)])


def call_with(
    gate: Any, method: str, tensors: Sequence[Tensor], *args: Any
) -> tuple[Any, dict[int, Tensor]]:
    """Call a method of a gate with other tensors in the place of its parameters and buffers.

    Returns:
        The result; and the new contents of buffers that the method would have written, by index.
    """
    copy = _copy_for_compiler(gate)
    vars(copy)["forward"] = getattr(copy, method)
    # As in `Attention._apply`: what excitations compute with is never narrower than float32.
    tensors = [upcast(t) if t.is_floating_point() else t for t in tensors]
    replaced = dict(zip(_name_tensors(gate), tensors, strict=True))
    # It leaves what the modules have assigned to their buffers in `replaced`.
    result = functional_call(copy, replaced, args)
    new = enumerate(zip(replaced.values(), tensors, strict=True))
    return result, {i: value for i, (value, t) in new if value is not None and value is not t}


def _copy_for_compiler(module: nn.Module) -> nn.Module:
    """Return a module with the same tensors and results, in forms that Inductor can fuse."""
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    for place in ("_parameters", "_buffers", "_modules"):
        vars(copy)[place] = dict(vars(module)[place])
    for name, part in module.named_children():
        copy._modules[name] = _copy_for_compiler(part)
    if type(module) is BatchNorm2d:
        copy.__class__ = _FunctionalBatchNorm2d
    elif type(module) in _NORMS:
        copy.__class__ = _FunctionalBatchNorm1d
    elif type(module) in _CONVS and _is_short(cast(nn.Conv1d, module)):
        copy.__class__ = _ShiftedConv1d
    return copy


class _FunctionalBatchNorm1d(nn.BatchNorm1d):
    """A BatchNorm1d that assigns new running statistics instead of writing into the old ones.

    It computes in float64, in which PyTorch sums on the CPU, too: a batch has few images, and where
    they are alike, their differences have few digits.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.BatchNorm1d)
        norm: Any = self  # whose buffers may be None
        x, mean, var = input.double(), norm.running_mean, norm.running_var
        if self.training or mean is None:
            mean = x.mean(0)
            squares = (x - mean).square().sum(0)
            var = squares / x.shape[0]
            _assign_statistics(self, mean, squares / (x.shape[0] - 1))
        scale, shift, _ = norm_coefficients(
            mean.double(), var.double(), self.weight, self.bias, self.eps
        )
        return (scale * x + shift).to(input.dtype)


class _FunctionalBatchNorm2d(BatchNorm2d):
    """A BatchNorm2d that assigns new running statistics instead of writing into the old ones."""

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """See `BatchNorm2d.track`."""
        _assign_statistics(self, mean, variance)


def _assign_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None:
        return
    norm.num_batches_tracked = seen = norm.num_batches_tracked + 1
    share = seen.double().reciprocal() if norm.momentum is None else norm.momentum
    norm.running_mean = update_running(norm.running_mean, mean, share)
    norm.running_var = update_running(norm.running_var, variance, share)


def _is_short(conv: nn.Conv1d) -> bool:
    return (
        (conv.in_channels, conv.out_channels, conv.stride, conv.padding_mode)
        == (1, 1, (1,), "zeros")
        and not isinstance(conv.padding, str)
        and conv.kernel_size[0] <= _MOST_TAPS
    )


class _ShiftedConv1d(nn.Conv1d):
    """A short convolution of one channel as a sum of shifted products.

    Inductor leaves convolutions to a library, in a function for one number of channels only.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Conv1d)
        padding, (dilation,), size = int(self.padding[0]), self.dilation, input.shape[-1]
        # F.pad would make the number of images a constant of the trace.
        zeros = input.new_zeros(*input.shape[:-1], size + 2 * padding)
        padded = torch.slice_scatter(zeros, input, -1, padding, padding + size)
        length = size + 2 * padding - dilation * (self.kernel_size[0] - 1)
        taps = self.weight.flatten().unbind()
        out = taps[0] * padded.narrow(-1, 0, length)
        for index, tap in enumerate(taps[1:], start=1):
            out = out + tap * padded.narrow(-1, index * dilation, length)
        return out if self.bias is None else out + self.bias[:, None]
