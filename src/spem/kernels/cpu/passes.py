"""The passes over maps for the CPU: `native.cpp`, which the compiler of the machine builds."""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from spem.kernels import inductor

Values = dict[str, Tensor]

# The dtypes of maps, with their names in C++ and the dtype in which they are computed.
_TYPES = {
    torch.float32: ("float", torch.float32),
    torch.float64: ("double", torch.float64),
    torch.bfloat16: ("BFloat16", torch.float32),
}


# Positions are counted in the dtype of the computation, which is exact up to here.
_MOST_POSITIONS = 1 << 24


def serves(x: Tensor) -> bool:
    """Return whether the passes work on a map."""
    small = x.shape[2] * x.shape[3] <= _MOST_POSITIONS
    return x.device.type == "cpu" and x.dtype in _TYPES and small


def normalises_faster(x: Tensor) -> bool:
    """Return whether a norm without a gate is faster by these passes than by PyTorch's own.

    Measured on two cores in float32: in NCHW it is, by far; in NHWC it is not inside of networks.
    """
    return x.is_contiguous()


@cache
def why_not() -> str | None:
    """Return why nothing can be compiled on this machine; None where it can."""
    try:
        _find_instructions()
        _library(torch.float32)
        inductor.call(lambda x: [x + 1], "probe", [torch.zeros(2, 3)], [], 2, 3)
    except Exception as error:  # whatever a compiler and its driver may raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line]
        return (telling or lines or [type(error).__name__])[0]
    return None


def _find_instructions() -> None:
    """Let the passes themselves show that the compiler knows what the processor offers.

    Inductor otherwise builds a program of its own to see it, and loads it in a new process, which
    takes longer than the passes.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    try:
        with config.patch({"cpp.vec_isa_ok": True}):
            _library(torch.float32)
    except Exception:  # an older compiler: Inductor looks for what it knows
        valid_vec_isa_list.cache_clear()


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """Build the passes for one dtype, or find them in Inductor's cache."""
    from torch._inductor.codecache import CppCodeCache

    text = files("spem.kernels.cpu").joinpath("native.cpp").read_text()
    library = CppCodeCache.load(f"{text}\nFUNCTIONS({_TYPES[dtype][0]})\n")
    for name, (maps, flags) in _ARGUMENTS.items():
        kinds = [ctypes.c_int64] * 5 + [ctypes.c_void_p] * maps + [ctypes.c_int64] * flags
        getattr(library, name).argtypes = kinds
    return library


# How many addresses and flags each function takes, behind the shape.
_ARGUMENTS = {"pool": (8, 0), "recalibrate": (5, 2), "sums": (6, 0), "input_gradient": (12, 1)}


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(_library(dtype), name)


def _run(name: str, x: Tensor, addresses: Iterable[int | None], *flags: bool) -> None:
    """Call a function of `native.cpp`.

    Args:
        name: of the function.
        x: gives dtype, shape and memory format; dense.
        addresses: of tensors like x, or in the dtype of `_wide` and contiguous.
        flags: further arguments.
    """
    n, c, height, width = x.shape
    last = not x.is_contiguous()
    function = _function(name, x.dtype)
    function(n, c, height * width, last, torch.get_num_threads(), *addresses, *flags)


def _addresses(x: Tensor, *tensors: Tensor | None) -> list[int | None]:
    for t in tensors:
        if t is not None and not t.is_cpu:
            raise ValueError(
                f"a tensor is on {t.device}, must be on the device of the map, {x.device}"
            )
    return [None if t is None else t.data_ptr() for t in tensors]


def _wide(x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Return pooled values or coefficients as the passes over x read them."""
    dtype = _TYPES[x.dtype][1]
    return [None if value is None else value.to(dtype).contiguous() for value in values]


def _stack(x: Tensor, number: int) -> tuple[Tensor, range]:
    """Return a new stack of (N, C) tensors, and their addresses."""
    shape = (number, *x.shape[:2])
    stack = torch.empty(shape, dtype=_TYPES[x.dtype][1], device=x.device)
    return stack, addresses_in(stack)


def addresses_in(stack: Tensor) -> range:
    """Return the addresses of the tensors of a contiguous stack."""
    first, step = stack.data_ptr(), stack.stride(0) * stack.element_size()
    return range(first, first + len(stack) * step, step)


_EXTREMA = ("max", "min", "argmax", "argmin", "first")
_POOLED = ("mean", "var", *_EXTREMA)


def found_by_pool(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return what `pool` finds, in order, where some statistics are wanted."""
    var = ("var",) if "var" in wanted else ()
    extrema = _EXTREMA if "max" in wanted or "min" in wanted else ()
    return ("mean", *var, *extrema)


def pool_stack(x: Tensor, wanted: tuple[str, ...]) -> Tensor:
    """Pool a map (N, C, H, W) in one read.

    Returns:
        At least the wanted statistics; with extrema also where their gradients go, and the values
        at position 0: each (N, C), in a stack in the order of `found_by_pool`.
    """
    names = found_by_pool(wanted)
    stack, addresses = _stack(x, len(names))
    found = dict(zip(names, addresses, strict=True))
    _run("pool", x, [*_addresses(x, x), *map(found.get, _POOLED)])
    return stack


def pool(x: Tensor, wanted: tuple[str, ...]) -> Values:
    """Pool a map (N, C, H, W) in one read; see `pool_stack`."""
    return dict(zip(found_by_pool(wanted), pool_stack(x, wanted).unbind(), strict=True))


def recalibrate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    overwrite: bool = False,
) -> Tensor:
    """Compute relu(scale·x + shift + residual).

    Args:
        x: (N, C, H, W), dense.
        residual: in the shape, dtype and format of x, or None.
        scale: (N, C) or (C,).
        shift: in the shape of scale, or None.
        relu: whether negative results become 0.
        overwrite: whether the result takes the memory of x.
    """
    out = x if overwrite else torch.empty_like(x)
    if overwrite:
        torch.autograd.graph.increment_version(x)
    tensors = (x, residual, out, *_wide(x, scale, shift))
    _run("recalibrate", x, _addresses(x, *tensors), scale.dim() == 2, relu)
    return out


def sums_stack(
    grad: Tensor, out: Tensor | None, x: Tensor, write: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift, (2, N, C).

    Args:
        grad: of the recalibrated map, (N, C, H, W), in the format of x.
        out: the recalibrated map; None where there was no ReLU.
        x: the map.
        write: whether the first is wanted; it is None otherwise.
    """
    stack, addresses = _stack(x, 2)
    d = torch.empty_like(x) if write and out is not None else None
    _run("sums", x, [*_addresses(x, grad, out, x, d), *addresses])
    return grad if out is None else d, stack


def sums(grad: Tensor, out: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient before the ReLU, and those of scale and shift; see `sums_stack`."""
    d, stack = sums_stack(grad, out, x)
    dscale, dshift = stack.unbind()
    return grad if d is None else d, dscale, dshift


def input_gradient(
    x: Tensor,
    values: Values,
    gradients: Values,
    grad: Tensor | None = None,
    scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient of a map from those of its pooled values and its recalibration.

    Args:
        x: the map, (N, C, H, W).
        values: what `pool` returned.
        gradients: of its statistics, each (N, C); one that is left out is 0.
        grad: of the recalibrated map, before the ReLU, or behind it if `out` is given.
        scale: by which it was recalibrated, (N, C) or (C,).
        out: the recalibrated map.
    """
    held = _wide(x, *map(values.get, _READ))
    return _input_gradient(x, _addresses(x, *held), gradients, grad, scale, out)


def input_gradient_of_stack(
    x: Tensor,
    wanted: tuple[str, ...],
    stack: Tensor,
    gradients: Values,
    grad: Tensor,
    scale: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient of a map from what `pool_stack` returned; see `input_gradient`."""
    found = dict(zip(found_by_pool(wanted), addresses_in(stack), strict=True))
    return _input_gradient(x, [*map(found.get, _READ)], gradients, grad, scale, out)


# What the gradient of the map reads of the pooled values.
_READ = ("mean", "argmax", "argmin")


def _input_gradient(
    x: Tensor,
    values: Sequence[int | None],
    gradients: Values,
    grad: Tensor | None,
    scale: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    dx = torch.empty_like(x)
    scale, *changed = _wide(x, scale, *map(gradients.get, ("mean", "var", "max", "min")))
    scale_address, *others = _addresses(x, scale, *changed)
    mean, argmax, argmin = values
    coefficients = (scale_address, mean, *others, argmax, argmin)
    per_image = scale is None or scale.dim() == 2
    _run("input_gradient", x, [*_addresses(x, grad, out, x, dx), *coefficients], per_image)
    return dx
