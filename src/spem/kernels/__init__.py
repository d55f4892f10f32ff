"""The implementations of the two operations on maps, and the one function that chooses."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from spem.choices import unknown
from spem.kernels import eager, reference

_IMPLEMENTATIONS = {"eager": eager, "reference": reference}

# A plain module variable: Dynamo cannot trace a ContextVar.
_forced: ModuleType | None = None


def chosen() -> ModuleType:
    """Return the implementation that serves now.

    The one that `use` forces; else the reference text while Dynamo or the exporter traces, which
    fuse it themselves; else the eager one.
    """
    if _forced is not None:
        return _forced
    return reference if torch.compiler.is_compiling() else eager


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one implementation inside a `with` block.

    Args:
        name: "eager" or "reference".

    Raises:
        ValueError: no implementation has this name.
    """
    global _forced
    if name not in _IMPLEMENTATIONS:
        raise unknown("implementation", name, _IMPLEMENTATIONS)
    before, _forced = _forced, _IMPLEMENTATIONS[name]
    try:
        yield
    finally:
        _forced = before
