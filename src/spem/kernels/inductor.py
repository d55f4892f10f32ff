"""Kernels that Inductor makes of plain text on tensors, without compiling what calls them."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._subclasses import FakeTensorMode

Text = Callable[..., Sequence[Tensor]]
Kernel = Callable[[list[Tensor]], Sequence[Tensor]]

# Sizes of the maps (N, C, K, T) with which kernels are traced. They hold for none, but guide the
# loops; where a dimension is 1, or a gate fixes the channels, the kernel is made for that.
_HINTS = (62, 47, 33, 31)

_kernels: dict[Hashable, Kernel] = {}
_lock = threading.Lock()


def count() -> int:
    """Return the number of kernels that this process has made or read from the cache."""
    return len(_kernels)


@cache
def why_not() -> str | None:
    """Return why nothing can be compiled on this machine; None where it can."""
    x = torch.zeros(2, 3, 5, 7)
    try:
        call(lambda x: (x + 1,), "probe", [x])
    except Exception as error:  # whatever a compiler and its driver may raise
        return str(error).strip().partition("\n")[0]
    return None


def call(
    text: Text,
    key: Hashable,
    maps: Sequence[Tensor],
    pooled: Sequence[Tensor] = (),
    rest: Sequence[Tensor] = (),
    width: int | None = None,
) -> Sequence[Tensor]:
    """Run a text on tensors by the kernel that the first such call makes of it.

    Args:
        text: a function of all tensors, in this order, to a tuple of tensors.
        key: equal for two texts only where they do the same with tensors of the same kind.
        maps: (N, C, K, T), not empty, all dense and in the format of the first.
        pooled: (N, C), contiguous.
        rest: contiguous; (C,), or with `width` of any shapes that follow from the key.
        width: C where the text is for this number of channels alone; None where it is for any.

    Raises:
        RuntimeError: the compiler failed.
    """
    x = maps[0]
    n, c, k, t = x.shape
    sizes = (n == 1, width or c == 1, k == 1, t == 1)
    kinds = tuple([t.dtype for t in (*maps, *pooled, *rest)])
    whole = (key, kinds, x.device, x.is_contiguous(), sizes, torch.get_num_threads())
    kernel = _kernels.get(whole)
    if kernel is None:
        with _lock:
            kernel = _kernels[whole] = _compile(text, maps, pooled, rest, width)
    return kernel([*maps, *pooled, *rest])


def _compile(
    text: Text,
    maps: Sequence[Tensor],
    pooled: Sequence[Tensor],
    rest: Sequence[Tensor],
    width: int | None,
) -> Kernel:
    """Trace a text with symbolic sizes and let Inductor compile the result.

    `torch.compile` would do the same, but checks guards at every call, which takes several times
    as long as these calls, and counts all kernels towards one limit of recompilations.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    trace = make_fx(lambda *xs: tuple(text(*xs)), select_decomp_table(), tracing_mode="fake")
    plain = (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(maps[0].device.type, enabled=False),
    )
    with plain[0], plain[1], plain[2], tracing(TracingContext(mode)):
        inputs = [_fake(mode, t) for t in _examples(maps, pooled, rest, width)]
        module = trace(*inputs)
        return compile_fx_inner(module, inputs)  # pyright: ignore[reportReturnType]


def _examples(
    maps: Sequence[Tensor], pooled: Sequence[Tensor], rest: Sequence[Tensor], width: int | None
) -> Iterator[tuple[Tensor, list[bool]]]:
    """Yield tensors like those of a call, of the sizes in `_HINTS`, and which sizes may vary."""
    hints = zip(maps[0].shape, _HINTS, strict=True)
    n, c, *size = (1 if size == 1 else hint for size, hint in hints)
    c = width or c
    vary = [n > 1, width is None and c > 1, *(side > 1 for side in size)]
    flat = maps[0].is_contiguous()
    last = torch.contiguous_format if flat else torch.channels_last
    for t in maps:
        yield t.new_empty(n, c, *size).contiguous(memory_format=last), vary
    for t in pooled:
        yield t.new_empty(n, c), vary[:2]
    for t in rest:
        yield (t.new_empty(c), vary[1:2]) if width is None else (t.detach(), [False] * t.dim())


def _fake(mode: "FakeTensorMode", example: tuple[Tensor, list[bool]]) -> Tensor:
    """Return a stand-in whose varying sizes are symbols, the same for the same size."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    tensor, vary = example
    sizes = [DimDynamic.DUCK if varies else DimDynamic.STATIC for varies in vary]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(sizes))
