"""The base class `Gate`: the pipeline of all gates that read pooled values."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from spem import kernels
from spem._checks import check_switch, check_whole
from spem.functional import (
    STATISTICS,
    Pooled,
    check_residual,
    count_positions,
    pool,
    recalibrate,
)
from spem.gates.attention import Attention
from spem.gates.excitation import gate_excitation
from spem.kernels import fused
from spem.kernels.backend import Sigmoid

# Scale, shift and sigmoid of a recalibration; None leaves out a factor or a term.
Transform = tuple[Tensor | None, Tensor | None, Sigmoid | None]


class Gate(Attention):
    """Channel attention whose multipliers follow from the pooled values of a feature map.

    A subclass sets `statistics` to the pooled values it reads (all, unless it says less) and
    defines `excite`; the base pools and recalibrates, and `GatedBatchNorm2d` does both in its own
    passes, except in eager mode.

    Args:
        channels: C, the number of channels of the feature maps it gates, at most 16,384.
        init: see `Attention`.
    """

    family = "pooled"
    statistics: tuple[str, ...] = STATISTICS
    # Whether it reads `statistics` alone, which the norm before it pools in its own pass. A gate
    # that pools in another way says False and defines `pool_map`.
    reads_statistics_only = True
    # Whether it reads the pooled values of the input of its norm, instead of the output's.
    reads_input = False
    # Whether the multipliers are a function of the pooled values, parameters, buffers and plain
    # options alone, so that one kernel serves all gates of a kind. Not inherited: each class says.
    traceable = False
    # Whether `permute` moves the channels of what was recalibrated, to which a residual is added.
    permutes = False
    # Whether the gain is known to be 1, so that `multiplier` need not multiply by it.
    unit_gain = False

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the pooled values of x, (N, C, H, W), that `excite` reads."""
        return pool(x, self.statistics)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multiplier of every channel, (N, C), or (1, C) for all images alike."""
        raise NotImplementedError(f"{type(self).__name__} does not define excite")

    def multiplier(self, pooled: Pooled) -> Tensor:
        """Return gain · excite(pooled), (N, C), in float32 or wider, under autocast too.

        Raises:
            ValueError: `excite` returned another shape.
        """
        with torch.autocast(self.gain.device.type, enabled=False):
            excited = self.excite(pooled)
            multiplier = excited if self.unit_gain else self.gain * excited
        # The channels are a symbol where a kernel for any number of them is traced.
        found = multiplier.shape[-1]
        if multiplier.dim() != 2 or (isinstance(found, int) and found != self.channels):
            raise ValueError(
                f"excite of {type(self).__name__} returned {tuple(multiplier.shape)}, "
                f"must be (N, {self.channels})"
            )
        return self.report_multiplier(multiplier)

    def offset(self, pooled: Pooled) -> Tensor | None:
        """Return what is added to every position of a channel, (N, C) or (1, C); None: nothing."""
        return None

    def transform(self, pooled: Pooled) -> Transform:
        """Return the multipliers, the offset and None, see `multiplier` and `offset`.

        None stands for the sigmoid that a `PositionGate` has.
        """
        multiplier = self.multiplier(pooled)
        with torch.autocast(self.gain.device.type, enabled=False):
            return multiplier, self.offset(pooled), None

    def permute(self, x: Tensor) -> Tensor:
        """Return a copy of x, (N, C, H, W), in the order of channels of a gate that `permutes`."""
        raise NotImplementedError(f"{type(self).__name__} does not define permute")

    def deployed(self) -> "Gate":
        """Return what serves in this gate's place in inference: the same multiplier, fewer steps.

        `spem.deploy` calls it on a copy of a model: the gate may return itself, changed. A gate
        whose constants can be computed beforehand returns another one.
        """
        self.unit_gain = bool((self.gain == 1).all())
        return self

    def coefficients(self, pooled: Pooled, scale: Tensor, shift: Tensor, bias: Tensor) -> Transform:
        """Return a and b, (N, C), such that the gated norm of x is a·x + b, and a sigmoid or None.

        Args:
            pooled: the pooled values of the norm's input x.
            scale: (C,), the norm is scale·x + shift.
            shift: (C,).
            bias: the norm's own bias β, (C,), which shift contains.
        """
        multiplier, offset, _ = self.transform(pooled.affine(scale, shift))
        shift = present(multiplier) * shift
        return present(multiplier) * scale, shift if offset is None else shift + offset, None

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(multiplier · x + offset + residual).

        Args:
            x: (N, C, H, W).
            residual: (N, C, H, W), added after the recalibration.
            relu: whether negative results become 0.
            overwrite: whether the result may take the memory of x where no gradient is asked for.

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        check_switch("relu", relu)
        if residual is not None:
            check_residual(x, residual)
        if self.permutes and (relu or residual is not None):
            return gated(None, self(x, overwrite=overwrite), residual, relu)
        out = self._recalibrate(x, residual, relu, overwrite)
        return self.permute(out) if self.permutes else out

    def _recalibrate(
        self, x: Tensor, residual: Tensor | None, relu: bool, overwrite: bool
    ) -> Tensor:
        if not self.reads_statistics_only:
            multiplier, offset, _ = expand(self.transform(self.pool_map(x)), x)
            return recalibrate(x, present(multiplier), offset, residual, relu)
        backend = kernels.chosen_for_pipeline(x)
        if fused.serves(backend) and (excitation := gate_excitation(self)):
            return fused.apply(backend, excitation, x, residual, relu, overwrite, self)
        pooled_map = backend.pool(x, self.statistics)
        pooled = Pooled.of(pooled_map.values, count_positions(x))
        scale, shift, sigmoid = expand(self.transform(pooled), x)
        return pooled_map.recalibrate(scale, shift, residual, relu, overwrite, sigmoid)


def expand(transform: Transform, x: Tensor) -> Transform:
    """Return the coefficients of a recalibration for each image of x, (N, C)."""
    scale, shift, sigmoid = transform
    size = x.shape[:2]
    wide = None if sigmoid is None else [None if t is None else t.expand(size) for t in sigmoid]
    return (
        None if scale is None else scale.expand(size),
        None if shift is None else shift.expand(size),
        None if wide is None else Sigmoid(*cast(Any, wide)),
    )


def has_hooks(module: nn.Module | None) -> bool:
    """Return whether somebody wants to see the input or the result of a module's own call."""
    return module is not None and bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def gated(
    gate: Attention | None,
    x: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    source: Tensor | None = None,
) -> Tensor:
    """Return relu(gate(x) + residual) for any gate, or for none.

    Args:
        gate: a `Gate`, which also adds and rectifies, a gate that reads the feature map, or None.
        x: (N, C, H, W); without a gate it is overwritten.
        residual: (N, C, H, W), added after the gate.
        relu: whether negative results become 0.
        source: the block's input, for gates that read it.
    """
    if gate is None:
        out = x if residual is None else x.add_(residual)
        return out.relu_() if relu else out
    if isinstance(gate, Gate) and not has_hooks(gate):
        return gate(x, residual, relu)
    out = gate(x, source) if gate.needs_source else gate(x)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def present(statistic: Tensor | None) -> Tensor:
    """Return a pooled statistic that a gate reads, or raise ValueError where it was left out."""
    if statistic is None:
        raise ValueError("the pooled values lack a statistic that this gate reads")
    return statistic


def measure_length(pooled: Pooled) -> Tensor:
    """Return √Σx² of each channel, (N, C), whose gradient is 0 where all x are 0."""
    squares = pooled.count * (present(pooled.var) + present(pooled.mean).square())
    # The gradient of the root at 0 is infinite; that of the clamp is 0 there.
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def degrees_of_freedom(count: int | Tensor) -> int | Tensor:
    """Return count − 1, the divisor of an unbiased variance of `count` values.

    A trace has the count as a tensor, which no branch can ask whether it is 1: at least 1 there,
    in floating point, as not every runtime limits integers.
    """
    return (count - 1.0).clamp_min(1) if isinstance(count, Tensor) else count - 1


def hidden_width(channels: int, reduction: int) -> int:
    """Return the width of an excitation's hidden layer, C // reduction.

    Raises:
        ValueError: the reduction is not a whole number of at least 1, or leaves no hidden unit.
    """
    check_whole("reduction", reduction)
    if channels < reduction:
        raise ValueError(
            f"reduction is {reduction}, must be at most {channels}, the number of channels: "
            "a larger one leaves no hidden unit"
        )
    return channels // reduction
