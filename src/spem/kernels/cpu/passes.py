"""The compiled backend: passes over feature maps on the CPU, built of `native.cpp`."""

import ctypes
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from spem.kernels import inductor
from spem.kernels.autograd import (
    PassesBackend,
    Recalibration,
    Values,
    are_per_channel,
    pad_coefficients,
)

# The dtypes of feature maps, with their names in C++ and the dtype in which they are computed.
_TYPES = {
    torch.float32: ("float", torch.float32),
    torch.float64: ("double", torch.float64),
    torch.bfloat16: ("BFloat16", torch.float32),
}
# Positions are counted in the dtype of the computation, which is exact up to here.
_MOST_POSITIONS = 1 << 24
# How many addresses and flags each function of `native.cpp` takes, behind the shape.
_ARGUMENTS = {"pool": (8, 0), "recalibrate": (9, 2), "sums": (11, 1), "input_gradient": (17, 1)}
_EXTREMA = ("max", "min", "argmax", "argmin", "first")
_POOLED = ("mean", "var", *_EXTREMA)
# What the gradient of the feature map reads of the pooled values.
_READ = ("mean", "argmax", "argmin")


@cache
def why_not() -> str | None:
    """Return why nothing can be compiled on this machine; None where it can."""
    try:
        # The library is built first: it shows Inductor which instructions the compiler knows.
        inductor.find_instructions(lambda: _library(torch.float32))
        _library(torch.float32)
        inductor.call(lambda x: [x + 1], "probe", [torch.zeros(2, 3)], [], 2, 3)
    except Exception as error:  # whatever a compiler and its driver may raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line]
        return (telling or lines or [type(error).__name__])[0]
    return None


@cache
def _library(dtype: torch.dtype, number: int = 2) -> ctypes.CDLL:
    """Build the passes for one dtype, or find them in Inductor's cache.

    The number is that of coefficients: those with a sigmoid are libraries apart, which few networks
    need.
    """
    source = files("spem.kernels.cpu").joinpath("native.cpp").read_text()
    kind = _TYPES[dtype][0]
    lines = f"RECALIBRATE({kind}, {number})" + f"\nPOOL({kind})" * (number == 2)
    library = inductor.build_library(f"{source}\n{lines}\n", contracts=number > 2)
    for name, (addresses, flags) in _ARGUMENTS.items():
        if number > 2 and name == "pool":
            continue
        kinds = [ctypes.c_int64] * 5 + [ctypes.c_void_p] * addresses + [ctypes.c_int64] * flags
        getattr(library, name).argtypes = kinds
    return library


@cache
def _function(name: str, dtype: torch.dtype, number: int) -> Any:
    return getattr(_library(dtype, number), name)


def _call(
    name: str, x: Tensor, addresses: Iterable[int | None], *flags: bool, number: int = 2
) -> None:
    """Call a function of `native.cpp`.

    Args:
        name: of the function.
        x: gives dtype, shape and memory format; dense.
        addresses: of feature maps like x, or of contiguous tensors in the dtype of `_wide`.
        flags: further arguments.
        number: of the coefficients of the recalibration.
    """
    n, c, height, width = x.shape
    last = not x.is_contiguous()
    function = _function(name, x.dtype, number)
    function(n, c, height * width, last, torch.get_num_threads(), *addresses, *flags)


def _addresses(x: Tensor, *tensors: Tensor | None) -> list[int | None]:
    for t in tensors:
        if t is not None and not t.is_cpu:
            raise ValueError(
                f"a tensor is on {t.device}, must be on the device of the feature map, {x.device}"
            )
    return [None if t is None else t.data_ptr() for t in tensors]


def _wide(x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Return pooled values or coefficients as the passes over x read them."""
    dtype = _TYPES[x.dtype][1]
    return [None if value is None else value.to(dtype).contiguous() for value in values]


def _new_stack(x: Tensor, number: int) -> tuple[Tensor, range]:
    """Return a new stack of (N, C) tensors, and their addresses."""
    shape = (number, *x.shape[:2])
    stack = torch.empty(shape, dtype=_TYPES[x.dtype][1], device=x.device)
    return stack, _addresses_in(stack)


def _addresses_in(stack: Tensor) -> range:
    """Return the addresses of the tensors of a contiguous stack."""
    first, step = stack.data_ptr(), stack.stride(0) * stack.element_size()
    return range(first, first + len(stack) * step, step)


class Compiled(PassesBackend):
    """The passes of `native.cpp`; each excitation is compiled by Inductor at its first use."""

    name = "compiled"

    def serves(self, x: Tensor) -> bool:
        """See `Backend.serves`."""
        small = x.shape[2] * x.shape[3] <= _MOST_POSITIONS
        return x.device.type == "cpu" and x.dtype in _TYPES and small

    def prefers_own_norm(self, x: Tensor, gated: bool) -> bool:
        """See `Backend.prefers_own_norm`; measured on two cores in float32.

        Without a gate these passes are faster in NCHW, by far; in NHWC, inside of networks, they
        are not.
        """
        return gated or x.is_contiguous()

    def pooled_names(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """See `PassesBackend.pooled_names`."""
        var = ("var",) if "var" in wanted else ()
        extrema = _EXTREMA if "max" in wanted or "min" in wanted else ()
        return ("mean", *var, *extrema)

    def run_pool(self, x: Tensor, wanted: tuple[str, ...]) -> Tensor:
        """See `PassesBackend.run_pool`."""
        names = self.pooled_names(wanted)
        stack, addresses = _new_stack(x, len(names))
        by_name = dict(zip(names, addresses, strict=True))
        _call("pool", x, [*_addresses(x, x), *map(by_name.get, _POOLED)])
        return stack

    def run_recalibrate(
        self,
        x: Tensor,
        coefficients: Recalibration,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """See `PassesBackend.run_recalibrate`."""
        out = x if overwrite else torch.empty_like(x)
        if overwrite:
            torch.autograd.graph.increment_version(x)
        wide = _wide(x, *pad_coefficients(coefficients))  # kept until the call
        addresses = _addresses(x, x, residual, out, *wide)
        flags = (not are_per_channel(coefficients), relu)
        _call("recalibrate", x, addresses, *flags, number=len(coefficients))
        return out

    def run_sums(
        self,
        grad: Tensor,
        out: Tensor | None,
        x: Tensor,
        coefficients: Recalibration,
        masked: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """See `PassesBackend.run_sums`."""
        stack, (first, *_) = _new_stack(x, len(coefficients))
        d = torch.empty_like(x) if masked and out is not None else None
        wide = _wide(x, *pad_coefficients(coefficients if len(coefficients) > 2 else ()))
        addresses = [*_addresses(x, grad, out, x, d, *wide), first]
        _call("sums", x, addresses, not are_per_channel(coefficients), number=len(coefficients))
        return grad if out is None else d, stack

    def run_input_gradient(
        self,
        x: Tensor,
        wanted: tuple[str, ...],
        stack: Tensor | None,
        gradients: Values,
        grad: Tensor | None,
        coefficients: Recalibration,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `PassesBackend.run_input_gradient`."""
        addresses = () if stack is None else _addresses_in(stack)
        names = () if stack is None else self.pooled_names(wanted)
        mean, argmax, argmin = map(dict(zip(names, addresses, strict=True)).get, _READ)
        dx = torch.empty_like(x)
        changed = _wide(x, *map(gradients.get, ("mean", "var", "max", "min")))
        wide = _wide(x, *pad_coefficients(coefficients))
        values = [*_addresses(x, *wide), mean, *_addresses(x, *changed), argmax, argmin]
        addresses = [*_addresses(x, grad, out, x, dx), *values]
        flag = not are_per_channel(coefficients)
        _call("input_gradient", x, addresses, flag, number=len(coefficients))
        return dx


COMPILED = Compiled()
