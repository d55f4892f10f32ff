"""Gates as heads of compiled segments: what they are traced from and told apart by."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call

from spem.functional import Pooled
from spem.kernels.segment import Coefficients, Head, Values, number

_PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(part, _PLAIN) for part in value)
    return isinstance(value, _PLAIN)


class _Structure(NamedTuple):
    """What stays the same about a gate: its class, submodules and the shapes of its tensors.

    The key has None for sizes that are the number of channels: one text serves any number. The gate
    itself is not in it, for it would never be freed.
    """

    key: Hashable
    places: list[tuple[dict[str, Any], str, tuple[int, ...] | None]]  # with the shape, if any
    names: list[str]
    hooks: list[dict[int, Any]]
    parts: list[nn.Module]

    def describes(self, gate: nn.Module) -> bool:
        """Return whether no submodule and no tensor of the gate was replaced."""
        if self.parts != [*gate.modules()][1:]:
            return False
        return all(
            name in place and _shape(place[name]) == shape for place, name, shape in self.places
        )


_structures: WeakKeyDictionary[nn.Module, _Structure] = WeakKeyDictionary()


def compilable(gate: Any) -> bool:
    """Return whether a gate's multipliers may be computed by a kernel that is made only once.

    Its class itself must say so (`Gate.traceable`): of a derived one, nobody knows what it adds.
    """
    return (
        vars(type(gate)).get("traceable", False)
        and not gate.refines
        and not {"excite", "multiplier", "fold"} & vars(gate).keys()
        and not any(_structure(gate).hooks)
    )


def identity(gate: Any) -> Hashable:
    """Return what tells a gate from others that compute something else from the same tensors."""
    own = [v for name, v in vars(gate).items() if _is_plain(v) and name != "channels"]
    return _structure(gate).key, tuple(own)


def tensors_of(gate: Any) -> list[Tensor]:
    """Return the parameters and buffers of a gate."""
    places = _structure(gate).places
    return [place[name].contiguous() for place, name, shape in places if shape is not None]


def call_with(gate: Any, method: Callable[..., Any], tensors: Sequence[Tensor], *args: Any) -> Any:
    """Call a method of a gate with other tensors in the place of its parameters and buffers."""
    names = _structure(gate).names
    replaced = {f"gate.{name}": t for name, t in zip(names, tensors, strict=True)}
    return functional_call(_Call(gate, method), replaced, args)


def pooled_from(values: Values, count: Any) -> Pooled:
    """Return the values of a segment as `Pooled`."""
    mean, var, largest, smallest = map(values.get, ("mean", "var", "max", "min"))
    return Pooled(mean, var, largest, smallest, count)


def gate_head(gate: Any) -> Head:
    """Return the head of a gate that stands alone: the scale is its multiplier."""

    def function(values: Values, count: Any, tensors: Sequence[Tensor]) -> Coefficients:
        pooled = pooled_from(values, count)
        multiplier = call_with(gate, gate.multiplier, tensors, pooled)
        return Coefficients(multiplier, None, {})

    key = ("gate", identity(gate))
    return Head(function, number(key), gate.statistics, tensors_of(gate))


class _Call(nn.Module):
    """A method of a gate as a module, which functional_call takes."""

    def __init__(self, gate: nn.Module, method: Callable[..., Any]):
        super().__init__()
        self.gate, self.method = gate, method

    def forward(self, *args: Any) -> Any:
        return self.method(*args)


def _structure(gate: nn.Module) -> _Structure:
    found = _structures.get(gate)
    if found is None or not found.describes(gate):
        found = _structures[gate] = _read_structure(gate)
    return found


def _read_structure(gate: Any) -> _Structure:
    places, names, key = [], [], []
    for prefix, module in gate.named_modules(prefix="", remove_duplicate=False):
        own = tuple(v for v in vars(module).values() if _is_plain(v))
        key.append((type(module), own if prefix else ()))
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                places.append((place, name, _shape(tensor)))
                if tensor is not None:
                    names.append(f"{prefix}.{name}" if prefix else name)
                    sizes = (None if size == gate.channels else size for size in tensor.shape)
                    key.append((name, *sizes))
    hooks: list[Any] = []
    for module in gate.modules():
        hooks += [module._forward_hooks, module._forward_pre_hooks]
    return _Structure(tuple(key), places, names, hooks, [*gate.modules()][1:])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
