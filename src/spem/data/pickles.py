"""Plain data in a pickle, read without Python's unpickler: nothing in it can run or exhaust.

Of the language of pickles this reads what files of numbers, texts and arrays of bytes need. A
container holds texts and numbers only, so nothing nests; an array's bytes must be in the file, so
nothing grows beyond it.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MARK = object()


class _Global(NamedTuple):
    """A name that the pickle asks for; it is never imported."""

    name: str


class _Dtype(NamedTuple):
    """The type of an array of bytes."""


class _Array:
    """An array of bytes; BUILD gives it its values."""

    def __init__(self) -> None:
        self.values: Tensor | None = None


_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_KNOWN = {*_RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode"}
_PLAIN = (str, bytes, int, float, type(None))
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2: bytes
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(data: bytes) -> dict[Any, Any]:
    """Return the dictionary in a pickle; arrays of bytes in it are tensors, uint8.

    Args:
        data: written by Python 2 or 3 with numpy 1 or 2, up to protocol 4.

    Raises:
        ValueError: it is damaged, or holds anything but texts, numbers, arrays of bytes, and lists
            of texts and numbers.
    """
    machine = _Machine(len(data))
    for opcode, argument, _ in pickletools.genops(data):
        machine.take(opcode.name, argument)
    found = machine.result
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, must be a dictionary")
    return {k: v.values if isinstance(v, _Array) else v for k, v in found.items()}


class _Machine:
    """The stack and the memo of a pickle that is read."""

    def __init__(self, size: int):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # Bytes that may still be built: those of an array may be a text before, in the same file.
        self.left = 2 * size
        self.result: Any = None
        self.actions: dict[str, Callable[[], None]] = {
            "MARK": lambda: self.stack.append(_MARK),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_DICT": lambda: self.stack.append({}),
            "EMPTY_TUPLE": lambda: self.stack.append(()),
            "LIST": lambda: self.stack.append([*map(_plain, self._pop_to_mark())]),
            "APPEND": lambda: self._append([self.stack.pop()]),
            "APPENDS": lambda: self._append(self._pop_to_mark()),
            "DICT": lambda: self.stack.append(_pairs(self._pop_to_mark())),
            "SETITEM": lambda: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda: self._set(self._pop_to_mark()),
            "TUPLE": lambda: self.stack.append(_tuple(self._pop_to_mark())),
            "STACK_GLOBAL": lambda: self._name(f"{self.stack.pop(-2)} {self.stack.pop()}"),
            "REDUCE": lambda: self._call(*self._pop(2)),
            "BUILD": lambda: self._build(*self._pop(2)),
            "MEMOIZE": lambda: self._remember(len(self.memo)),
        }

    def take(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode in _NUMBERS or opcode in _TEXTS or opcode in _BYTES:
            self.stack.append(argument)
        elif opcode in _STRINGS:
            self.stack.append(argument.encode("latin1"))
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _PUT:
            self._remember(argument)
        elif opcode in _GET:
            self.stack.append(self.memo[argument])
        elif opcode in _TUPLES:
            self.stack.append(_tuple(self._pop(_TUPLES[opcode])))
        elif opcode in self.actions:
            self.actions[opcode]()
        elif opcode == "GLOBAL":
            self._name(argument)
        elif opcode == "STOP":
            (self.result,) = self.stack
        elif opcode == "PROTO" and argument > 4:
            raise ValueError(f"it is of protocol {argument}, must be at most 4")
        elif opcode not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {opcode}, which plain data does not need")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more than it has")
        popped = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return popped

    def _pop_to_mark(self) -> list[Any]:
        popped = []
        while (value := self.stack.pop()) is not _MARK:
            popped.append(value)
        return popped[::-1]

    def _append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1] += map(_plain, values)

    def _set(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it sets an item of what is no dictionary")
        self.stack[-1].update(_pairs(values))

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _name(self, name: str) -> None:
        if name not in _KNOWN:
            raise ValueError(f"it asks for {name.replace(' ', '.')[:80]}")
        self.stack.append(_Global(name))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        if function.name == "_codecs encode":  # as Python 3 writes bytes in protocol 2
            text = arguments[0]
            self._spend(len(text))
            self.stack.append(text.encode("latin1"))
        elif function.name == "numpy dtype":
            code = _decode(arguments[0])
            if code != "u1":
                raise ValueError(f"it holds an array of {code[:20]!r}, not of bytes ('u1')")
            self.stack.append(_Dtype())
        elif function.name in _RECONSTRUCT:
            self.stack.append(_Array())
        else:
            raise ValueError(f"it calls {function.name.replace(' ', '.')}")

    def _build(self, built: Any, state: Any) -> None:
        if isinstance(built, _Array):
            _, shape, _, column_major, data = state
            if not (data and isinstance(data, bytes)):
                raise ValueError("it holds an empty array")
            self._spend(len(data))
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            built.values = flat.view(shape[::-1]).mT if column_major else flat.view(shape)
        elif not isinstance(built, _Dtype):
            raise ValueError(f"it gives a state to a {type(built).__name__}")
        self.stack.append(built)

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("its arrays are larger than the file")


def _plain(value: Any) -> Any:
    if not isinstance(value, _PLAIN):
        raise ValueError(f"a list holds a {type(value).__name__}, must hold texts and numbers")
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Return a dictionary of texts to plain values, arrays and lists."""
    keys, others = values[::2], values[1::2]
    for key, value in zip(keys, others, strict=True):
        if not isinstance(key, str | bytes) or not isinstance(value, (*_PLAIN, list, _Array)):
            raise ValueError(f"a {type(key).__name__} leads to a {type(value).__name__}")
    return dict(zip(keys, others, strict=True))


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    """Return a tuple of plain values, names, and tuples of numbers: arguments and states."""
    for value in values:
        inner = isinstance(value, tuple) and all(isinstance(each, int) for each in value)
        if not inner and not isinstance(value, (*_PLAIN, _Global, _Dtype)):
            raise ValueError(f"a tuple holds a {type(value).__name__}")
    return tuple(values)


def _decode(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
