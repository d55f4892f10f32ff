"""Pooling and recalibration: the two stages of channel attention that read the feature map."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spem import kernels
from spem._checks import check_names, check_switch, check_tensor, sizes_are_known
from spem._messages import unknown
from spem.kernels.backend import Sigmoid
from spem.kernels.tracing import is_exported

STATISTICS = ("mean", "var", "max", "min")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Pooled(NamedTuple):
    """The pooled values of a batch of feature maps, each (N, C), in float32 or wider.

    A statistic that was not asked for is None. `var` is biased; `count` is H·W, a tensor () where
    a trace or an export leaves the size open: compute with it by operators and tensor methods, not
    by `math`.
    """

    mean: Tensor | None
    var: Tensor | None
    max: Tensor | None
    min: Tensor | None
    count: int | Tensor

    @classmethod
    def of(cls, values: Mapping[str, Tensor], count: int | Tensor) -> "Pooled":
        """Return statistics, which are given by name, of feature maps of `count` positions."""
        return cls(*map(values.get, STATISTICS), count=count)

    def affine(self, scale: Tensor, shift: Tensor) -> "Pooled":
        """Return the pooled values of scale·x + shift, without reading x.

        Args:
            scale: (C,), of any sign; where it is negative, maximum and minimum trade places.
            shift: (C,).

        Raises:
            ValueError: one of maximum and minimum is there and the other is not.
        """
        if (self.max is None) != (self.min is None):
            raise ValueError("affine needs max and min together: a negative scale swaps them")
        mean = None if self.mean is None else scale * self.mean + shift
        var = None if self.var is None else scale.square() * self.var
        if self.max is None or self.min is None:
            return Pooled(mean, var, None, None, self.count)
        above, below = scale * self.max + shift, scale * self.min + shift
        positive = scale >= 0
        return Pooled(
            mean,
            var,
            torch.where(positive, above, below),
            torch.where(positive, below, above),
            self.count,
        )


def pool(x: Tensor, statistics: Iterable[str] = STATISTICS) -> Pooled:
    """Reduce every channel of every image to single values (stage 1 of channel attention).

    Args:
        x: (N, C, H, W), floating point, any memory format; N may be 0, H·W may not.
        statistics: which of "mean", "var", "max", "min" to compute.

    Returns:
        The pooled values; those not asked for are None. The gradient of a maximum or a minimum
        goes to its first position in row-major order.

    Raises:
        ValueError: x has another shape or dtype, or a statistic is unknown.

    Example:
        >>> pool(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), ["mean", "max"]).mean
        tensor([[4.]])
    """
    check_map("x", x)
    wanted = check_names("statistics", statistics)
    for name in wanted:
        if name not in STATISTICS:
            raise unknown("statistic", name, STATISTICS)
    check_positions(x)
    ordered = tuple(name for name in STATISTICS if name in wanted)
    return Pooled.of(kernels.chosen(x).pool(x, ordered).values, count_positions(x))


def recalibrate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    sigmoid: Sigmoid | None = None,
) -> Tensor:
    """Compute relu(scale·x + shift + residual) (stage 3 of channel attention).

    With a sigmoid relu((scale·x + shift)·σ(slope·x + offset + square·(x − centre)²) + residual): a
    multiplier of each position that follows from x and a few values of its channel.

    Args:
        x: (N, C, H, W), floating point.
        scale: (N, C), the multiplier of each channel.
        shift: (N, C), added to every position of a channel.
        residual: (N, C, H, W), in the dtype of x.
        relu: whether negative results become 0.
        sigmoid: its coefficients, each (N, C); square and slope may be None for 0, and centre
            without a square.

    Returns:
        (N, C, H, W) in the dtype and memory format of x.

    Raises:
        ValueError: a shape or dtype does not fit x, or a square has no centre.
    """
    check_map("x", x)
    _check_multipliers("scale", scale, x)
    given = {"shift": shift, **(sigmoid._asdict() if sigmoid else {})}
    for name, value in given.items():
        if value is not None or name == "offset":
            _check_multipliers(name, value, x)
    if sigmoid is not None and sigmoid.square is not None and sigmoid.centre is None:
        raise ValueError("square needs centre, the value from which distances are squared")
    check_switch("relu", relu)
    if residual is not None:
        check_residual(x, residual)
    return kernels.chosen(x).recalibrate(x, scale, shift, residual, relu, sigmoid=sigmoid)


def _check_multipliers(name: str, value: Any, x: Tensor) -> None:
    """Raise ValueError unless a tensor has one real number for each channel of each image of x."""
    check_tensor(name, value)
    wrong = value.is_complex() or value.layout is not torch.strided
    other = sizes_are_known(x) and value.shape != x.shape[:2]
    if other or value.device != x.device or wrong:
        raise ValueError(
            f"{name} is {tuple(value.shape)} {value.dtype} on {value.device}, must be"
            f" {tuple(x.shape[:2])} on {x.device}, of real numbers"
        )


def count_positions(x: Tensor) -> int | Tensor:
    """Return H·W of x, (N, C, H, W): a tensor () where it is a variable of an exported program.

    Exporters write tensor operations into their files, but few functions of single numbers.
    """
    count = x.shape[2] * x.shape[3]
    if isinstance(count, torch.SymInt) and is_exported():
        return torch.full((), count, dtype=torch.float32, device=x.device)
    return count


def check_residual(x: Tensor, residual: Tensor) -> None:
    """Raise ValueError unless a residual is like x, to which it is added, but for its strides."""
    check_tensor("residual", residual)
    alike = residual.dtype == x.dtype and residual.device == x.device
    other = sizes_are_known(x) and residual.shape != x.shape
    if other or not alike or residual.layout is not torch.strided:
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype} on {residual.device},"
            f" must be {tuple(x.shape)} {x.dtype} on {x.device} as x is"
        )


def check_positions(x: Tensor) -> None:
    """Raise ValueError where a feature map has no positions to pool."""
    if sizes_are_known(x) and x.shape[2] * x.shape[3] == 0:
        raise ValueError(f"x has no positions to pool: its shape is {tuple(x.shape)}")


def check_map(name: str, x: Tensor) -> None:
    """Raise ValueError unless x is a dense feature map (N, C, H, W) of 16 bits or more."""
    check_tensor(name, x)
    if x.dim() != 4 or x.dtype not in DTYPES or x.layout is not torch.strided:
        hint = f"; give {name}.dequantize(), and set `qconfig = None` on the module of the gate"
        raise ValueError(
            f"{name} is {tuple(x.shape)} {x.dtype}, must be (N, C, H, W), dense, in floating point"
            f" of 16, 32 or 64 bits{hint if x.is_quantized else ''}"
        )
