"""Kernels that Inductor makes of text on pooled values, without compiling what calls them."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spem.kernels import convolution

if TYPE_CHECKING:
    from torch._subclasses import FakeTensorMode

Text = Callable[..., Sequence[Tensor]]
Kernel = Callable[[list[Tensor]], Sequence[Tensor]]

# Numbers of images and channels with which kernels are traced. They hold for none, but guide the
# loops; where a number is 1, the kernel is made for that.
_HINTS = (62, 47)

_kernels: dict[Hashable, Kernel] = {}
# Texts of which a kernel holds for one number of channels only, as that of a convolution does.
_narrow: set[Hashable] = set()
_lock = threading.Lock()


def count() -> int:
    """Return the number of kernels that this process has made or read from the cache."""
    return len(_kernels)


def call(
    text: Text,
    key: Hashable,
    pooled: Sequence[Tensor],
    rest: Sequence[Tensor],
    images: int,
    channels: int,
) -> Sequence[Tensor]:
    """Run a text on tensors by the kernel that the first such call makes of it.

    Args:
        text: a function of all tensors, in this order, to a sequence of tensors.
        key: equal for two texts only where they do the same with tensors of the same kind.
        pooled: (images, channels), or stacks of such, contiguous.
        rest: contiguous, of sizes that follow from the key and the number of channels.
        images: N.
        channels: C.

    Raises:
        RuntimeError: the compiler failed, or the text is for one number of images only.
    """
    tensors = [*pooled, *rest]
    kinds = (*[t.dtype for t in tensors], *[t.get_device() for t in tensors])
    whole = (key, kinds, images == 1, channels == 1, torch.get_num_threads())
    kernel = _kernels.get((whole, channels) if whole in _narrow else whole)
    if kernel is None:
        with _lock, torch.inference_mode(False):
            kernel = _make(whole, text, pooled, rest, images, channels)
    return kernel(tensors)


def _make(
    whole: Hashable,
    text: Text,
    pooled: Sequence[Tensor],
    rest: Sequence[Tensor],
    images: int,
    channels: int,
) -> Kernel:
    n, c = (1 if size == 1 else hint for size, hint in zip((images, channels), _HINTS, strict=True))
    if whole not in _narrow:
        try:
            kernel = _compile(text, [*_examples(pooled, rest, channels, n, c, c > 1)])
        except Exception:  # a size that equals the number of channels by chance
            kernel = None
        if kernel is not None:
            return _kernels.setdefault(whole, kernel)
        _narrow.add(whole)
    kernel = _compile(text, [*_examples(pooled, rest, channels, n, channels, False)])
    if kernel is None:
        raise RuntimeError(f"no kernel for any number of images can be made of {whole}")
    return _kernels.setdefault((whole, channels), kernel)


def _compile(text: Text, examples: list[tuple[Tensor, list[bool]]]) -> Kernel | None:
    """Trace a text with symbolic sizes and let Inductor compile the result.

    `torch.compile` would do the same, but checks guards at every call, which takes several times
    as long as these calls, and counts all kernels towards one limit of recompilations.

    Returns:
        The kernel; None if it would hold for a single value of a size that may vary.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sizes = ShapeEnv()
    mode = FakeTensorMode(shape_env=sizes)
    device = examples[0][0].device.type
    aten = torch.ops.aten
    own = {
        aten.addcmul.default: _addcmul,  # whose shape rule takes no symbols
        aten.convolution.default: convolution.forward,
        aten.convolution_backward.default: convolution.backward,
    }
    if device != "cpu":
        own |= {aten.sum.dim_IntList: _sum, aten.sum.default: _sum}
    parts = {**select_decomp_table(), **own}
    trace = make_fx(lambda *xs: tuple(text(*xs)), parts, tracing_mode="fake")
    plain = (torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False))
    with plain[0], plain[1], plain[2], tracing(TracingContext(mode)):
        inputs = [_fake(mode, *example) for example in examples]
        module = trace(*inputs)
        # Of a convolution, Inductor makes a kernel for the sizes it sees, and a kernel from its
        # cache does not say so.
        narrow = any("convolution" in str(node.target) for node in module.graph.nodes)
        if sizes.replacements or (narrow and examples[0][1][-1]):
            return None
        with config.patch(size_asserts=False):  # `call` says what it is given
            compiled: Any = compile_fx_inner(module, inputs)
    # What is around it serves debugging, and takes longer than a small kernel.
    return None if sizes.replacements else compiled.current_callable


def _addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    return x + value * y * z


def _sum(
    x: Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum over the images first where all is summed: a GPU would else do it in one program.

    NotImplemented for any other sum.
    """
    every = not dim or len(dim) == x.dim()
    if x.dim() < 2 or not every or dtype is not None:
        return NotImplemented
    left = x.sum(0, keepdim)
    return left.sum([*range(int(keepdim), left.dim())], keepdim)


def _examples(
    pooled: Sequence[Tensor], rest: Sequence[Tensor], channels: int, n: int, c: int, varies: bool
) -> Iterator[tuple[Tensor, list[bool]]]:
    """Yield tensors like those of a call for n images and c channels, and which sizes may vary."""
    for t in pooled:
        stack = t.shape[:-2]
        yield t.new_empty(*stack, n, c), [*[False] * len(stack), n > 1, varies]
    for t in rest:
        vary = [varies and size == channels for size in t.shape]
        sizes = [c if size == channels else size for size in t.shape]
        yield t.new_empty(sizes), vary


def _fake(mode: "FakeTensorMode", example: Tensor, vary: list[bool]) -> Tensor:
    """Return a stand-in whose varying sizes are symbols, the same for the same size."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.DUCK if varies else DimDynamic.STATIC for varies in vary]
    return mode.from_tensor(example, symbolic_context=StatelessSymbolicContext(sizes))
