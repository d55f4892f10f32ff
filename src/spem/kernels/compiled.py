"""The passes over maps for the CPU: `native.cpp`, which the compiler of the machine builds."""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

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
        _library(torch.float32)
        inductor.call(lambda x: [x + 1], "probe", [torch.zeros(2, 3)], [], 2, 3)
    except Exception as error:  # whatever a compiler and its driver may raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line]
        return (telling or lines or [type(error).__name__])[0]
    return None


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """Build the passes for one dtype, or find them in Inductor's cache."""
    from torch._inductor.codecache import CppCodeCache

    text = files("spem.kernels").joinpath("native.cpp").read_text()
    library = CppCodeCache.load(f"{text}\nFUNCTIONS({_TYPES[dtype][0]})\n")
    for name, (maps, flags) in _ARGUMENTS.items():
        kinds = [ctypes.c_int64] * 5 + [ctypes.c_void_p] * maps + [ctypes.c_int64] * flags
        getattr(library, name).argtypes = kinds
    return library


# How many addresses and flags each function takes, behind the shape.
_ARGUMENTS = {"pool": (8, 0), "recalibrate": (5, 2), "sums": (6, 0), "input_gradient": (12, 1)}


def _run(name: str, x: Tensor, tensors: Iterable[Tensor | None], *flags: bool) -> None:
    """Call a function of `native.cpp`.

    Args:
        name: of the function.
        x: gives dtype, shape and memory format; dense.
        tensors: like x, or in the dtype of `_wide` and contiguous.
        flags: further arguments.
    """
    n, c, height, width = x.shape
    tensors = list(tensors)
    for t in tensors:
        if t is not None and not t.is_cpu:
            raise ValueError(
                f"a tensor is on {t.device}, must be on the device of the map, {x.device}"
            )
    addresses = [None if t is None else t.data_ptr() for t in tensors]
    function = getattr(_library(x.dtype), name)
    last = not x.is_contiguous()
    function(n, c, height * width, last, torch.get_num_threads(), *addresses, *flags)


def _wide(x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Return pooled values or coefficients as the passes over x read them."""
    dtype = _TYPES[x.dtype][1]
    return [None if value is None else value.to(dtype).contiguous() for value in values]


def _new(x: Tensor, number: int) -> Sequence[Tensor]:
    shape = (number, *x.shape[:2])
    return torch.empty(shape, dtype=_TYPES[x.dtype][1], device=x.device).unbind()


_EXTREMA = ("max", "min", "argmax", "argmin", "first")


def pool(x: Tensor, wanted: tuple[str, ...]) -> Values:
    """Pool a map (N, C, H, W) in one read.

    Returns:
        At least the wanted statistics; with extrema also where their gradients go, and the values
        at position 0: each (N, C).
    """
    names = ["mean", "var"] if "var" in wanted else ["mean"]
    if "max" in wanted or "min" in wanted:
        names += _EXTREMA
    found = dict(zip(names, _new(x, len(names)), strict=True))
    _run("pool", x, [x, *map(found.get, ("mean", "var", *_EXTREMA))])
    return found


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
    maps = (x, residual, out)
    _run("recalibrate", x, (*maps, *_wide(x, scale, shift)), scale.dim() == 2, relu)
    return out


def sums(
    grad: Tensor, out: Tensor | None, x: Tensor, write: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradient before the ReLU that gave `out`, and those of scale and shift.

    Args:
        grad: of the recalibrated map, (N, C, H, W), in the format of x.
        out: the recalibrated map; None where there was no ReLU.
        x: the map.
        write: whether the first is wanted; it is None otherwise.
    """
    dscale, dshift = _new(x, 2)
    d = torch.empty_like(x) if write and out is not None else None
    _run("sums", x, (grad, out, x, d, dscale, dshift))
    return grad if out is None else d, dscale, dshift


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
    dx = torch.empty_like(x)
    changed = map(gradients.get, ("mean", "var", "max", "min"))
    coefficients = _wide(x, scale, values.get("mean"), *changed)
    places = map(values.get, ("argmax", "argmin"))
    per_image = scale is None or scale.dim() == 2
    _run("input_gradient", x, (grad, out, x, dx, *coefficients, *places), per_image)
    return dx
