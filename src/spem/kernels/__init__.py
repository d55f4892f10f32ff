"""The implementations of the two operations on maps, and the one function that chooses."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spem._messages import unknown
from spem.kernels import autograd, eager, reference
from spem.kernels.cpu import passes

if TYPE_CHECKING:
    from spem.kernels.cpu.custom_ops import Traced

_IMPLEMENTATIONS = ("eager", "compiled", "triton", "reference")

# A plain module variable: Dynamo cannot trace a ContextVar.
_forced: ModuleType | None = None


def chosen(x: Tensor) -> ModuleType:
    """Return the implementation that serves a map.

    While Dynamo or the exporter traces, the reference text, which they fuse themselves, but for a
    map of NHWC on the CPU in training the passes of our own, if they can be built; else the one
    that `use` forces, unless it is compiled and does not serve the map's device or dtype; else
    Triton's on CUDA, where it is installed, and the eager one elsewhere. An empty map needs no
    kernel.
    """
    if torch.compiler.is_compiling():
        return _traced(x) or (eager if _forced is eager else reference)
    if x.numel() == 0:
        return reference if _forced is reference else eager
    if _forced is not None and (_forced is not passes or passes.serves(x)):
        return _forced
    return (_triton() if x.is_cuda else None) or eager


def _traced(x: Tensor) -> ModuleType | None:
    """Return the operators for a map that Dynamo traces in training on the CPU, if they work.

    In NHWC only: Inductor gives the maps of NCHW networks other formats of its own, and operators
    would make it turn them back.
    """
    if torch.compiler.is_exporting() or _forced not in (None, passes):
        return None
    if x.is_contiguous() or not torch.is_grad_enabled() or x.numel() == 0:
        return None
    if not passes.serves(x):
        return None
    from spem.kernels.cpu import custom_ops as traced  # brings in Dynamo, which is here already

    return traced if traced.works() else None


def with_heads(x: Tensor) -> ModuleType | None:
    """Return the implementation that serves a map if `segment` takes it, with compiled heads."""
    ops = chosen(x)
    if ops is passes:
        return ops
    return ops if hasattr(ops, "compiles_heads") and ops.compiles_heads() else None


def fused(x: Tensor) -> bool:
    """Return whether a map is served by passes of our own, gradients included."""
    return chosen(x) not in (eager, reference)


class Separate:
    """A map that is pooled and recalibrated by operations that autograd keeps apart.

    The form of `Linked`, which see, for the implementations without passes of their own.
    """

    def __init__(self, ops: ModuleType, x: Tensor, wanted: tuple[str, ...]):
        self._ops = ops
        self._x, self.values = ops.pool(x, wanted)

    def recalibrate(
        self,
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(scale·x + shift + residual), in the memory of x if it may be overwritten."""
        if overwrite and self._ops is eager and not torch.is_grad_enabled():
            return eager.recalibrate(self._x, scale, shift, residual, relu, overwrite)
        return self._ops.recalibrate(self._x, scale, shift, residual, relu)


def passes_over(x: Tensor, wanted: tuple[str, ...]) -> "autograd.Linked | Traced | Separate":
    """Pool a map that is to be recalibrated, by the chosen implementation."""
    ops = chosen(x)
    if wanted and hasattr(ops, "Traced"):
        return ops.Traced(x, wanted)
    return _pooled(_apart(ops), x, wanted)


def _apart(ops: ModuleType) -> ModuleType:
    """Return what does one of the two operations alone: the operators work together only."""
    return reference if hasattr(ops, "Traced") else ops


def _pooled(ops: ModuleType, x: Tensor, wanted: tuple[str, ...]) -> autograd.Linked | Separate:
    return (Separate if ops in (eager, reference) else autograd.Linked)(ops, x, wanted)


def pool(x: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the wanted statistics of a map by name, by the chosen implementation."""
    return _pooled(_apart(chosen(x)), x, wanted).values


def recalibrate(
    x: Tensor, scale: Tensor, shift: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """Compute relu(scale * x + shift + residual) by the chosen implementation."""
    ops = _apart(chosen(x))
    if ops in (eager, reference):
        return ops.recalibrate(x, scale, shift, residual, relu)
    return autograd.recalibrate(ops, x, scale, shift, residual, relu)


def is_forced() -> bool:
    """Return whether `use` forces an implementation now."""
    return _forced is not None


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one implementation inside a `with` block.

    Args:
        name: "eager"; "compiled", kernels for the CPU that are built at the first use of each;
            "triton", for maps on CUDA; or "reference".

    Raises:
        ValueError: no implementation has this name.
        RuntimeError: it does not work on this machine; the message says why.
    """
    global _forced
    if name not in _IMPLEMENTATIONS:
        raise unknown("implementation", name, _IMPLEMENTATIONS)
    before, _forced = _forced, _load(name)
    try:
        yield
    finally:
        _forced = before


def _load(name: str) -> ModuleType:
    if name == "compiled" and (reason := passes.why_not()):
        raise RuntimeError(f"kernels cannot be compiled here: {reason}")
    if name == "triton":
        return _triton_or_reason()
    return {"eager": eager, "compiled": passes, "reference": reference}[name]


def _triton_or_reason() -> ModuleType:
    try:
        from spem.kernels.triton import passes
    except ImportError as error:
        raise RuntimeError(f"Triton's kernels need the package triton: {error}") from error
    if not (torch.cuda.is_available() or passes.INTERPRETED):
        raise RuntimeError("Triton's kernels need a CUDA device, and this machine has none")
    return passes


@cache
def _triton() -> ModuleType | None:
    """Return Triton's kernels, or None, with one line in the log, where they cannot be had."""
    try:
        return _triton_or_reason()
    except RuntimeError as error:
        logging.getLogger("spem").warning("%s; falling back to eager PyTorch", error)
        return None
