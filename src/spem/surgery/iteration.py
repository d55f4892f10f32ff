"""Find blocks whose forward pass looks at its own children, among which a gate would be one more.

Such a forward pass runs every child, or indexes or counts them: a gate that is registered there
would run twice, or break the block.
"""

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

from spem._messages import shorten

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_OF_CHILDREN = {"children", "named_children", "_modules"}
# Python calls these without naming them: `for x in self`, `self[0]`, `len(self)`.
_CALLED_UNNAMED = ("__iter__", "__getitem__", "__len__")


def refuse_iterating(name: str, slot: nn.Module) -> None:
    """Raise ValueError if the forward pass of a slot looks at its own children.

    Args:
        name: of the slot.
        slot: the module.
    """
    if not looks_at_children(slot):
        return
    inside = _last_that_can_be_gated(name, slot)
    where = f" like at={shorten(inside)}" if inside else ""
    raise ValueError(
        f"the forward pass of {shorten(name)} ({type(slot).__name__}) goes through its own "
        f"children, of which a gate would be one more: attach to a module inside of it{where}, or "
        "to the one that reads its output"
    )


def looks_at_children(module: nn.Module) -> bool:
    """Return whether a module's forward pass iterates, indexes or counts its own children.

    Containers do, by whatever forward pass. Of other classes the compiled code is searched: of
    `forward`, and of all methods that it calls.
    """
    if isinstance(module, _CONTAINERS):
        return True
    kind, seen, found = type(module), set(), False
    methods = ["forward", *_CALLED_UNNAMED]
    while methods and not found:
        method = methods.pop()
        if method in seen:
            continue
        seen.add(method)
        names = {name for code in _codes(module, method) for name in _names_on_self(code)}
        found = not names.isdisjoint(_OF_CHILDREN)
        methods += [name for name in names if inspect.isroutine(getattr(kind, name, None))]
    return found


def _codes(module: nn.Module, method: str) -> Iterator[CodeType]:
    """Yield the code of a method in every class that defines it, since one may call the next."""
    classes = type(module).__mro__
    for level in (module, *classes[: classes.index(nn.Module)]):
        found: Any = vars(level).get(method)
        function = inspect.unwrap(getattr(found, "__func__", found))
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield code


def _names_on_self(code: CodeType) -> Iterator[str]:
    """Yield the attributes that a method reads of its first argument, and of what is nested."""
    if not code.co_varnames:
        return
    owner, codes = code.co_varnames[0], [code]
    while codes:
        current = codes.pop()
        codes += [each for each in current.co_consts if isinstance(each, CodeType)]
        on_self = False
        for instruction in dis.get_instructions(current):
            if on_self and instruction.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
                yield str(instruction.argval)
            on_self = _loads(instruction, owner)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    """Return whether an instruction ends with this variable on top of the stack."""
    if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return False
    value: Any = instruction.argval  # a tuple where Python loads two variables at once
    return (value[-1] if isinstance(value, tuple) else value) == name


def _last_that_can_be_gated(name: str, module: nn.Module) -> str | None:
    """Return the name of the last module inside whose own forward pass is no such one."""
    for child_name, child in reversed([*module.named_children()]):
        full = f"{name}.{child_name}"
        if not looks_at_children(child):
            return full
        if inner := _last_that_can_be_gated(full, child):
            return inner
    return None
