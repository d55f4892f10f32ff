"""Gates as heads of compiled segments: what they are traced from and told apart by."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from operator import is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.func import functional_call

from spem.functional import Pooled
from spem.kernels.fused import Coefficients, Head, Values, number

_PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(part, _PLAIN) for part in value)
    return isinstance(value, _PLAIN)


class _Structure(NamedTuple):
    """What kernels depend on in a gate beside its own options: its parts and their tensors.

    The key has None for sizes that are the number of channels: one text serves any number.
    """

    key: Hashable
    names: list[str]
    tensors: list[Tensor]


def compilable(gate: Any) -> bool:
    """Return whether a gate's multipliers may be computed by a kernel that is made only once.

    Its class itself must say so (`Gate.traceable`): of a derived one, nobody knows what it adds.
    """
    return (
        "traceable" in vars(type(gate))
        and gate.traceable
        and not gate.refines
        and not {"excite", "multiplier", "coefficients"} & vars(gate).keys()
        and not any(m._forward_hooks or m._forward_pre_hooks for m in gate.modules())
    )


class _Kept:
    """The head of a module, and what it was made from but for the contents of tensors.

    It does not refer to the module, which would never be freed.
    """

    def __init__(self, head: Head, owner: nn.Module):
        self.head = head
        self._parts = [*owner.modules()][1:]
        self._names = [
            [name for name, value in vars(module).items() if _is_plain(value)]
            for module in (owner, *self._parts)
        ]
        self._options, self._objects = self._find(owner)
        self._shapes = [t.shape for t in head.tensors]

    def _find(self, owner: nn.Module) -> tuple[list[Any], list[Any]]:
        """Return what is to be equal and what is to be the same."""
        options, objects = [], []
        for module, names in zip((owner, *self._parts), self._names, strict=True):
            own = vars(module)
            options += map(own.get, names)
            options += map(len, (own, own["_forward_hooks"], own["_forward_pre_hooks"]))
            for place in ("_parameters", "_buffers", "_modules"):
                objects += own[place].values()
        return options, objects

    def holds(self, owner: nn.Module) -> bool:
        """Return whether no option, part or tensor was replaced, and no hook added."""
        options, objects = self._find(owner)
        tensors = self.head.tensors
        return (
            options == self._options
            and len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and [t.shape for t in tensors] == self._shapes
            and all(t.is_contiguous() for t in tensors)
        )


_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def head_of(owner: nn.Module, make: Callable[[], Head | None]) -> Head | None:
    """Return the head of a norm or a gate, made anew only where something of it was replaced.

    Args:
        owner: the module to which the head's tensors belong.
        make: returns the head, whose function must not refer to the owner, or None where the gate
            is not `compilable`.
    """
    kept = _kept.get(owner)
    if kept is not None and kept.holds(owner):
        return kept.head
    head = make()
    own = {id(t) for t in (*owner.parameters(), *owner.buffers())}
    if head is not None and all(t.is_leaf and id(t) in own for t in head.tensors):
        _kept[owner] = _Kept(head, owner)
    else:
        _kept.pop(owner, None)
    return head


def identity(gate: Any) -> Hashable:
    """Return what tells a gate from others that compute something else from the same tensors."""
    own = [v for name, v in vars(gate).items() if _is_plain(v) and name != "channels"]
    return _structure(gate).key, tuple(own)


def tensors_of(gate: Any) -> list[Tensor]:
    """Return the parameters and buffers of a gate."""
    return [t.contiguous() for t in _structure(gate).tensors]


def call_with(
    gate: Any, method: Callable[..., Any], tensors: Sequence[Tensor], *args: Any
) -> tuple[Any, dict[int, Tensor]]:
    """Call a method of a gate with other tensors in the place of its parameters and buffers.

    Returns:
        The result; and the new contents of tensors, by their index.
    """
    names = _structure(gate).names
    replaced = {f"gate.{name}": t for name, t in zip(names, tensors, strict=True)}
    gate.writes = {}
    try:
        found = functional_call(_Call(gate, method), replaced, args)
        return found, {names.index(name): value for name, value in gate.writes.items()}
    finally:
        del gate.writes


def pooled_from(values: Values, count: Any) -> Pooled:
    """Return the values of a segment as `Pooled`."""
    mean, var, largest, smallest = map(values.get, ("mean", "var", "max", "min"))
    return Pooled(mean, var, largest, smallest, count)


def gate_head(gate: Any) -> Head | None:
    """Return the head of a gate that stands alone: the scale is its multiplier.

    None where the gate is not `compilable`.
    """
    return head_of(gate, partial(_make_head, gate))


def _make_head(gate: Any) -> Head | None:
    if not compilable(gate):
        return None
    alive = ref(gate)

    def function(values: Values, count: Any, tensors: Sequence[Tensor]) -> Coefficients:
        gate: Any = alive()
        pooled = pooled_from(values, count)
        multiplier, updates = call_with(gate, gate.multiplier, tensors, pooled)
        return Coefficients(multiplier, None, updates)

    key = ("gate", identity(gate))
    return Head(function, number(key), gate.statistics, tensors_of(gate))


class _Call(nn.Module):
    """A method of a gate as a module, which functional_call takes."""

    def __init__(self, gate: nn.Module, method: Callable[..., Any]):
        super().__init__()
        self.gate, self.method = gate, method

    def forward(self, *args: Any) -> Any:
        return self.method(*args)


def _structure(gate: Any) -> _Structure:
    names, tensors, key = [], [], []
    for prefix, module in gate.named_modules(prefix="", remove_duplicate=False):
        own = tuple(v for v in vars(module).values() if _is_plain(v))
        key.append((type(module), own if prefix else ()))
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is not None:
                    names.append(f"{prefix}.{name}" if prefix else name)
                    tensors.append(tensor)
                    sizes = (None if size == gate.channels else size for size in tensor.shape)
                    key.append((name, *sizes))
    return _Structure(tuple(key), names, tensors)
