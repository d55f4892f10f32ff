"""Who carries out pooling and recalibration, and the one function that chooses.

`backend` is the interface; `reference` defines both operations, `eager` has them with fewer passes,
`cpu` and `triton` have own kernels, whose gradients `autograd` and `fused` put together; `inductor`
compiles what lies between pooling and recalibration.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from spem._checks import check_choice
from spem.kernels.backend import Backend
from spem.kernels.cpu import passes as cpu_passes
from spem.kernels.eager import EAGER
from spem.kernels.reference import REFERENCE
from spem.kernels.tracing import is_exported, is_traced, is_transformed

__all__ = ["Backend", "chosen", "chosen_for_pipeline", "is_forced", "use", "why_not"]

_NAMES = ("eager", "compiled", "triton", "reference")
# A plain module variable: Dynamo cannot trace a ContextVar.
_forced: Backend | None = None


def chosen(x: Tensor) -> Backend:
    """Return the backend that serves a feature map.

    While any tracer records (`is_traced`), the reference (or eager PyTorch, if it is forced and
    `torch.compile` traces), which compilers fuse themselves. Else the one that `use` forces, unless
    it does not serve the device or dtype of x; else Triton on CUDA, where it is installed, and
    eager PyTorch elsewhere. An empty feature map needs no kernel. Inside the transforms of
    `torch.func` and in forward-mode differentiation the reference, the only one that is
    differentiable in every way.
    """
    if is_traced(x):
        return EAGER if _forced is EAGER and not is_exported() else REFERENCE
    if is_transformed():
        return REFERENCE
    if x.numel() == 0:
        return REFERENCE if _forced is REFERENCE else EAGER
    if _forced is not None and _forced.serves(x):
        return _forced
    return (_triton_or_none() if x.is_cuda else None) or EAGER


def chosen_for_pipeline(x: Tensor) -> Backend:
    """Return the backend that serves a feature map which is pooled and then recalibrated.

    That of `chosen`, but for networks of NHWC that are compiled whole and trained on the CPU: there
    the compiled passes as custom operators, if they can be built. In NCHW Inductor gives feature
    maps other formats of its own, which it would have to turn back for an operator.
    """
    if (
        torch.compiler.is_compiling()
        and not is_exported()
        and (_forced is None or _forced is cpu_passes.COMPILED)
        and not x.is_contiguous()
        and torch.is_grad_enabled()
        and x.numel() > 0
        and cpu_passes.COMPILED.serves(x)
    ):
        from spem.kernels.cpu import custom_ops  # imports Dynamo, which is here already

        if custom_ops.works():
            return custom_ops.CUSTOM_OPS
    return chosen(x)


def is_forced() -> bool:
    """Return whether `use` forces a backend now."""
    return _forced is not None


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one backend inside a `with` block.

    Args:
        name: "eager"; "compiled", kernels for the CPU that are built at the first use of each;
            "triton", for CUDA devices; or "reference".

    Raises:
        ValueError: no backend has this name.
        RuntimeError: it does not work on this machine; the message says why.
    """
    global _forced
    if reason := why_not(name):
        raise RuntimeError(reason)
    before, _forced = _forced, _load(name)
    try:
        yield
    finally:
        _forced = before


def why_not(name: str) -> str | None:
    """Return why a backend does not work on this machine; None where it does.

    The first question after "compiled" builds the kernels, which takes seconds.

    Raises:
        ValueError: no backend has this name.
    """
    check_choice("backend", name, _NAMES)
    if name == "compiled" and (reason := cpu_passes.why_not()):
        return f"kernels cannot be compiled here: {reason}"
    if name == "triton":
        try:
            from spem.kernels.triton.passes import INTERPRETED
        except ImportError as error:
            return f"Triton's kernels need the package triton: {error}"
        if not (torch.cuda.is_available() or INTERPRETED):
            return "Triton's kernels need a CUDA device, and this machine has none"
    return None


def _load(name: str) -> Backend:
    if name == "triton":
        from spem.kernels.triton.passes import TRITON

        return TRITON
    return {"eager": EAGER, "compiled": cpu_passes.COMPILED, "reference": REFERENCE}[name]


@cache
def _triton_or_none() -> Backend | None:
    """Return Triton's kernels, or None, with one line in the log, where they do not work."""
    if reason := why_not("triton"):
        logging.getLogger("spem").warning("%s; falling back to eager PyTorch", reason)
        return None
    return _load("triton")
