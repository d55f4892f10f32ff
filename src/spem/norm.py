"""Batch normalisation whose statistics pass is the pooling pass of the gate behind it."""

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from spem import kernels
from spem.functional import STATISTICS, Pooled, check_residual, pool, recalibrate
from spem.gates.affine import norm_head
from spem.gates.gate import Attention, Gate, gated, present
from spem.kernels import fused
from spem.kernels.reference import upcast


class GatedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d, then a gate, a residual addition and a ReLU, each optional.

    Computes relu(gate(BatchNorm2d(x)) + residual). The parameters and buffers are those of
    `nn.BatchNorm2d`, under the same names; those of the gate lie below `gate.`.

    BatchNorm is an affine map of each channel, s·x + t, so the pooled values of its output follow
    from those of its input (`Pooled.affine`), and normalisation, gate, addition and ReLU are one
    pass: relu((g·s)·x + g·t + residual). Eager PyTorch normalises with `F.batch_norm` instead,
    which is faster there than the same text, and pools its output.

    Args:
        num_features: C.
        eps, momentum, affine, track_running_stats, device, dtype: as in `nn.BatchNorm2d`.
        gate: the gate, built for C channels; None for plain batch normalisation.

    Attributes:
        sync: whether the batch statistics are those of all processes of the default group.

    Raises:
        ValueError: the gate was built for another number of channels.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        gate: Attention | None = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if gate is not None and gate.channels != num_features:
            raise ValueError(f"the gate has {gate.channels} channels, the norm {num_features}")
        self.gate = gate
        self.sync = False

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        source: Tensor | None = None,
    ) -> Tensor:
        """Return relu(gate(BatchNorm2d(x)) + residual).

        Args:
            x: (N, C, H, W).
            residual: (N, C, H, W) in the dtype of x, added last; None adds nothing.
            relu: whether negative results become 0.
            source: the block's input, for gates that read it.

        Raises:
            ValueError: a shape or dtype does not fit, or training sees one value a channel.
        """
        self._check_input_dim(x)
        if residual is not None:
            check_residual(x, residual)
        gate = self.gate
        ops = kernels.with_heads(x)
        if ops is not None and self._compiles(ops, x):
            return self._compiled(ops, x, residual, relu, source)
        if isinstance(gate, Gate) and self._folds(gate, x):
            return self._folded(x, gate, residual, relu)
        if gate is None and self._synchronises():
            return self._folded(x, None, residual, relu)
        out = self._folded(x) if self._synchronises() else super().forward(x)
        if isinstance(gate, Gate) and gate.reads_input:
            return self._with_input(gate, x, out, residual, relu)
        if gate is not None:
            return gated(gate, out, residual, relu, source)
        # Batch normalisation keeps its input for the backward pass, not its output.
        out = out if residual is None else out.add_(residual)
        return F.relu_(out) if relu else out

    def _compiled(
        self,
        ops: ModuleType,
        x: Tensor,
        residual: Tensor | None,
        relu: bool,
        source: Tensor | None,
    ) -> Tensor:
        """Do all in two kernels, one each way, or only normalise where the gate does not allow."""
        gate = self.gate
        folded = gate if isinstance(gate, Gate) and gate.fuses_with_norm else None
        head = norm_head(self, folded)
        if head is None:
            return self._folded(x, folded, residual, relu)
        self._count_batch(x)
        if gate is None or folded is not None:
            return fused.apply(ops, head, x, residual, relu)
        return gated(gate, fused.apply(ops, head, x, None, False), residual, relu, source)

    def _count_batch(self, x: Tensor) -> None:
        if self.training or self.running_mean is None:
            _check_values(x.numel() // self.num_features)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def __getattr__(self, name: str) -> Any:
        """Refuse what would drop the gate in silence.

        SyncBatchNorm.convert_sync_batchnorm and the fusing of torch.ao ask a norm for its qconfig
        before they put another module in its place.
        """
        if name == "qconfig" and self.gate is not None:
            raise RuntimeError(
                "converting or fusing this norm would drop its gate: for shared batch statistics "
                "set `sync = True` on the norm (recipe key sync_batchnorm), else detach the gates"
            )
        return super().__getattr__(name)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (the name of nn.BatchNorm2d)
        if input.dim() != 4 or input.shape[1] != self.num_features:
            raise ValueError(
                f"the norm was built for {self.num_features} channels, the input is "
                f"{tuple(input.shape)}, must be (N, {self.num_features}, H, W)"
            )

    def _compiles(self, ops: ModuleType, x: Tensor) -> bool:
        if self._synchronises():
            return False
        fused = isinstance(self.gate, Gate) and self.gate.fuses_with_norm
        if not (fused or ops.normalises_faster(x)):
            return False
        # A cumulative average changes its factor at every batch.
        return self.momentum is not None or not self.training

    def _folds(self, gate: Gate, x: Tensor) -> bool:
        if not gate.fuses_with_norm:
            return False
        return self._synchronises() or (kernels.chosen(x) is not kernels.eager and x.numel() > 0)

    def _with_input(
        self, gate: Gate, x: Tensor, out: Tensor, residual: Tensor | None, relu: bool
    ) -> Tensor:
        """Gate the normalised map `out` by the pooled values of the norm's input x."""
        pooled = gate.refine(pool(x, gate.statistics), x)
        zeros = upcast(x.new_zeros(self.num_features))
        ones = torch.ones_like(zeros)
        a, b = gate.coefficients(pooled, ones, zeros, self.bias if self.affine else zeros)
        return recalibrate(out, a, b, residual, relu)

    def _folded(
        self,
        x: Tensor,
        gate: Gate | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Pool x, find the coefficients of everything else by autograd, and recalibrate once."""
        # Widened once, so that the gradients of both uses of x add up before they are rounded;
        # the passes of our own do so by themselves.
        own = kernels.fused(x)
        wide = x if own else upcast(x)
        running = None if self.training else self._running()
        wanted = set() if gate is None else set(gate.statistics)
        wanted |= set() if running else {"mean", "var"}
        passes = kernels.passes_over(wide, tuple(n for n in STATISTICS if n in wanted))
        pooled = Pooled.of(passes.values, x)
        mean, var = running or self._batch_moments(pooled)
        scale = (var + self.eps).rsqrt()
        scale = scale * self.weight if self.affine else scale
        bias = self.bias if self.affine else torch.zeros_like(scale)
        a, b = scale, bias - mean * scale
        if gate is not None:
            if not gate.reads_input:
                pooled = _at_first_position(pooled, wide, scale == 0)
            a, b = gate.coefficients(gate.refine(pooled, wide), a, b, bias)
        a, b = a.expand(x.shape[:2]), b.expand(x.shape[:2])
        added = residual if own or residual is None else upcast(residual)
        return passes.recalibrate(a, b, added, relu).to(x.dtype)

    def _running(self) -> tuple[Tensor, Tensor] | None:
        if self.running_mean is None or self.running_var is None:
            return None
        return self.running_mean, self.running_var

    def _batch_moments(self, pooled: Pooled) -> tuple[Tensor, Tensor]:
        """Merge the centred moments of the maps, (N, C), into those of the batch, (C,)."""
        means, variances = present(pooled.mean), present(pooled.var)
        maps = self._total(means)
        _check_values(maps * pooled.count)
        mean = self._sum(means.sum(0)) / maps
        var = self._sum((variances + (means - mean).square()).sum(0)) / maps
        if self.training:
            self._track(mean.detach(), var.detach(), maps * pooled.count)
        return mean, var

    def _synchronises(self) -> bool:
        return self.sync and self.training and dist.is_available() and dist.is_initialized()

    def _total(self, means: Tensor) -> int:
        if not self._synchronises():
            return len(means)
        count = torch.tensor(len(means), device=means.device)
        dist.all_reduce(count)
        return int(count)

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the processes that share statistics; the gradient flows to all of them."""
        return _AllReduce.apply(x) if self._synchronises() else x

    def _track(self, mean: Tensor, var: Tensor, values: int) -> None:
        running = self._running() if self.track_running_stats else None
        if running is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = self.num_batches_tracked.to(mean.dtype).reciprocal()
        unbiased = var * (values / (values - 1))
        for buffer, value in zip(running, (mean, unbiased), strict=True):
            buffer.lerp_(value.to(buffer.dtype), 0.0 if momentum is None else momentum)


def _check_values(count: int) -> None:
    if count <= 1:
        raise ValueError("training needs more than one value a channel, got a single one")


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduce.apply(grad)


def _at_first_position(pooled: Pooled, x: Tensor, flat: Tensor) -> Pooled:
    """Take both extrema from the first position where the norm's output is flat.

    A scale of 0, the usual start of a residual branch's last norm, ties all positions of the
    output: the first is its maximum and its minimum, and the gradient of the scale is taken there.
    None flows on to x: it would be multiplied by the scale.
    """
    if pooled.max is None or pooled.min is None:
        return pooled
    first = upcast(x[:, :, 0, 0].detach())
    return pooled._replace(
        max=torch.where(flat, first, pooled.max), min=torch.where(flat, first, pooled.min)
    )
