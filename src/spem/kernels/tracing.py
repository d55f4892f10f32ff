"""Whether PyTorch records the operations that run now, instead of carrying them out alone.

A trace keeps operations and no Python: what is decided by a number is decided once. So whatever
calls kernels of our own, or computes with sizes, asks here.
"""

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def is_traced(x: Tensor) -> bool:
    """Return whether operations on x are recorded, by any tracer, or x only stands for a tensor.

    Tensors of another class (fake, functional, distributed) have no memory that a kernel could
    read.
    """
    if torch.compiler.is_compiling():
        return True
    return is_exported() or type(x) not in (Tensor, nn.Parameter)


def is_exported() -> bool:
    """Return whether a program is recorded that outlives this call, for inputs of other sizes.

    By `torch.export`, `torch.jit.trace`, both ONNX exporters or `make_fx`, but not by
    `torch.compile`, which checks sizes at each call and compiles anew.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing or get_proxy_mode() is not None


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_batched(x: Tensor) -> bool:
    """Return whether x stands for the gradients of several outputs (`is_grads_batched=True`)."""
    return is_legacy_batchedtensor(x)
