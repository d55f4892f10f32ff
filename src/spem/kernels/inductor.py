"""Functions of pooled values, compiled by Inductor apart from what calls them.

Private modules of PyTorch are used in this file alone. A PyTorch that lacks them compiles nothing:
`spem.kernels.why_not` says so, and the eager backend serves.
"""

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from torch._subclasses import FakeTensorMode

Tensors = Sequence[Tensor | None]
Function = Callable[..., Tensors]
CompiledFunction = Callable[[list[Tensor]], Tensors]

# Numbers of images and channels with which functions are traced. The result holds for any, but
# Inductor tunes its loops for these; where a number is 1, the result holds for 1 alone.
_HINTS = (62, 47)

_compiled: dict[Hashable, CompiledFunction] = {}
# Functions whose compiled form holds for one number of channels only, as that of a convolution.
_narrow: set[Hashable] = set()
_lock = threading.Lock()


def count() -> int:
    """Return the number of functions that this process has compiled or read from the cache."""
    return len(_compiled)


def call(
    function: Function,
    key: Hashable,
    pooled: Sequence[Tensor],
    rest: Sequence[Tensor],
    images: int,
    channels: int,
) -> Tensors:
    """Call a function of tensors by its compiled form, which the first such call makes.

    Args:
        function: of all tensors, in this order, to a sequence of tensors.
        key: equal for two functions only where they do the same with tensors of the same kind.
        pooled: (images, channels), or stacks of such, contiguous.
        rest: contiguous, of sizes that follow from the key and the number of channels.
        images: N.
        channels: C.

    Raises:
        RuntimeError: the compiler failed, or the function is for one number of images only.
    """
    tensors = [*pooled, *rest]
    kinds = (*[t.dtype for t in tensors], *[t.get_device() for t in tensors])
    whole = (key, kinds, images == 1, channels == 1, torch.get_num_threads())
    compiled = _compiled.get((whole, channels) if whole in _narrow else whole)
    if compiled is None:
        with _lock, torch.inference_mode(False):
            compiled = _compile_once(whole, function, pooled, rest, images, channels)
    return compiled(tensors)


def _compile_once(
    whole: Hashable,
    function: Function,
    pooled: Sequence[Tensor],
    rest: Sequence[Tensor],
    images: int,
    channels: int,
) -> CompiledFunction:
    """Compile a function for any N and C, or for this C alone if that is not possible."""
    n, c = (1 if size == 1 else hint for size, hint in zip((images, channels), _HINTS, strict=True))
    if whole not in _narrow:
        try:
            compiled = _compile(function, [*_examples(pooled, rest, channels, n, c, c > 1)])
        except Exception:  # a size that equals the number of channels by chance
            compiled = None
        if compiled is not None:
            return _compiled.setdefault(whole, compiled)
        _narrow.add(whole)
    compiled = _compile(function, [*_examples(pooled, rest, channels, n, channels, False)])
    if compiled is None:
        raise RuntimeError(f"this function cannot be compiled for any number of images: {whole}")
    return _compiled.setdefault((whole, channels), compiled)


def _compile(
    function: Function, examples: list[tuple[Tensor, list[bool]]]
) -> CompiledFunction | None:
    """Trace a function with symbolic sizes and let Inductor compile the result.

    `torch.compile` would do the same, but checks guards at every call, which takes several times
    as long as these calls, and counts all functions towards one limit of recompilations. What
    `torch._inductor.standalone_compile` returns takes 1.6 times as long at each call.

    Returns:
        The compiled function; None if it would hold for a single value of a size that may vary.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sizes = ShapeEnv()
    mode = FakeTensorMode(shape_env=sizes)
    device = examples[0][0].device.type
    table = _decompositions(device)
    trace = make_fx(lambda *xs: tuple(function(*xs)), table, tracing_mode="fake")
    plain = (torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False))
    with plain[0], plain[1], plain[2], tracing(TracingContext(mode)):
        inputs = [_fake(mode, *example) for example in examples]
        module = trace(*inputs)
        # Inductor compiles a convolution for the sizes that it sees, and what it reads from its
        # cache does not say so.
        narrow = any("convolution" in str(node.target) for node in module.graph.nodes)
        if sizes.replacements or (narrow and examples[0][1][-1]):
            return None
        # `call` says what it is given; from 2.14 on the asserts also name the sizes.
        asserts = torch.__version__ >= TorchVersion("2.14")
        with config.patch(size_asserts=asserts):
            compiled: Any = compile_fx_inner(module, inputs)
    # What is around it serves debugging, and takes longer than a small function.
    return None if sizes.replacements else compiled.current_callable


def build_library(source: str, contracts: bool = False) -> ctypes.CDLL:
    """Build a shared library of C++ for this processor, or find it in Inductor's cache.

    Args:
        source: of the library.
        contracts: whether a product and a sum may be one instruction, which rounds once.
    """
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    known = hasattr(config.cpp, "enable_floating_point_contract_flag")
    changed = {"cpp.enable_floating_point_contract_flag": "fast"} if contracts and known else {}
    with config.patch(changed):
        return CppCodeCache.load(source)


def find_instructions(build: Callable[[], object]) -> None:
    """Let the building of a library show that the compiler knows what the processor offers.

    Inductor otherwise builds a program of its own to see it, and loads it in a new process, which
    takes longer than the passes.

    Args:
        build: builds a library by `build_library`.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    try:
        with config.patch({"cpp.vec_isa_ok": True}):
            build()
    except Exception:  # an older compiler: Inductor looks for what it knows
        valid_vec_isa_list.cache_clear()


def _decompositions(device: str) -> dict[Any, Callable[..., Any]]:
    """Return what operators are traced as on a type of device."""
    from torch._inductor.decomposition import select_decomp_table

    aten = torch.ops.aten
    own = {aten.addcmul.default: _addcmul}  # whose shape rule takes no symbols
    if device != "cpu":
        own |= {aten.sum.dim_IntList: _sum, aten.sum.default: _sum}
    return {**select_decomp_table(), **own}


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
