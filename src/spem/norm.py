"""Batch normalisation whose statistics pass is the pooling pass of the gate behind it."""

import warnings
from collections.abc import Iterator
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spem import kernels
from spem._checks import (
    check_device,
    check_finite,
    check_switch,
    check_whole,
    is_number,
    sizes_are_known,
)
from spem._fx import FxLeaf
from spem._messages import shorten
from spem.functional import (
    DTYPES,
    STATISTICS,
    Pooled,
    check_map,
    check_residual,
    count_positions,
    recalibrate,
)
from spem.gates.affine import (
    merge_moments,
    norm_coefficients,
    resolve_ties,
    track_statistics,
)
from spem.gates.attention import Attention
from spem.gates.gate import Gate, expand, gated, has_hooks, present
from spem.gates.norm_excitation import norm_excitation
from spem.kernels import fused
from spem.kernels.backend import Backend
from spem.kernels.reference import upcast

_MOMENTS = ("mean", "var")
# A plain attribute of norms that `attach` has converted, so that copies and pickles carry it.
CONVERTED = "_was_batch_norm"


class GatedBatchNorm2d(FxLeaf, nn.BatchNorm2d):
    """BatchNorm2d, then a gate, a residual addition and a ReLU, each optional.

    Computes relu(gate(BatchNorm2d(x)) + residual). The parameters and buffers are those of
    `nn.BatchNorm2d`, under the same names; those of the gate lie below `gate.`.

    BatchNorm is an affine map of each channel, s·x + t, so the pooled values of its output follow
    from those of its input (`Pooled.affine`), and normalisation, gate, addition and ReLU are one
    pass: relu((g·s)·x + g·t + residual). The eager backend normalises by `F.batch_norm` instead,
    which is faster there than the same operations one by one, and pools its output.

    Args:
        num_features: C, at most 65,536.
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
        check_whole("num_features", num_features, most=2**16)
        check_finite("eps", eps)
        if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum is {shorten(momentum)}, must be None or lie in [0, 1]")
        check_switch("affine", affine)
        check_switch("track_running_stats", track_running_stats)
        check_device("device", "cpu" if device is None else device)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype is {shorten(dtype)}, must be one of torch.float16 to float64")
        if not isinstance(gate, Attention | None):
            raise ValueError(f"gate is {shorten(gate)}, must be a gate of create_gate or None")
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
        check_switch("relu", relu)
        if residual is not None:
            check_residual(x, residual)
        # Either the statistics pass of the norm is the pooling pass of the gate, and one more pass
        # does the rest; or PyTorch normalises and the gate follows: in eager mode, and where the
        # gate reads more than the statistics.
        backend, gate = kernels.chosen_for_pipeline(x), cast(Any, self.gate)
        if self._takes_one_pass(backend, x):
            if gate is None or not gate.permutes:
                return self._run_one_pass(backend, x, gate, residual, relu)
            out = gate.permute(self._run_one_pass(backend, x, gate, None, False))
            return gated(None, out, residual, relu)
        # Batch normalisation keeps its input for the backward pass: its output may be overwritten.
        out = self._normalise_only(backend, x)
        if isinstance(gate, Gate) and gate.reads_input:
            return self._gate_by_input(gate, x, out, residual, relu)
        return gated(gate, out, residual, relu, source)

    def _takes_one_pass(self, backend: Backend, x: Tensor) -> bool:
        """Return whether norm, gate, addition and ReLU are one recalibration of x."""
        if has_hooks(self.gate):  # which are called where the gate is
            return False
        if isinstance(self.gate, Gate) and self.gate.reads_statistics_only:
            return self._synchronises() or backend.prefers_own_norm(x, True)
        return self.gate is None and (self._synchronises() or backend.prefers_own_norm(x, False))

    def _normalise_only(self, backend: Backend, x: Tensor) -> Tensor:
        """Return the normalised x, without gate, addition and ReLU."""
        if self._synchronises() or backend.prefers_own_norm(x, False):
            return self._run_one_pass(backend, x, None, None, False)
        if x.dtype is torch.float16 and x.is_cpu and not x.is_contiguous():
            # PyTorch's gradient in NHWC overflows at feature maps of 1e4.
            return super().forward(upcast(x)).to(x.dtype)
        return super().forward(x)

    def _run_one_pass(
        self,
        backend: Backend,
        x: Tensor,
        gate: Gate | None,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        """Pool x, compute the affine coefficients of norm and gate, and recalibrate once.

        The coefficients are compiled (`norm_excitation`) or, as below, computed under autograd.
        """
        # A cumulative average changes its factor at every batch.
        averages = self.training and self.momentum is None
        if fused.serves(backend) and not (averages or self._synchronises()):
            excitation = norm_excitation(self, gate)
            if excitation is not None:
                self._check_and_count_batch(x)
                return fused.apply(backend, excitation, x, residual, relu, owner=gate)
        wide = x if backend.rounds_once else upcast(x)
        running = None if self.training else self._running()
        wanted = set(() if gate is None else gate.statistics) | set(() if running else _MOMENTS)
        pooled_map = backend.pool(wide, tuple(n for n in STATISTICS if n in wanted))
        pooled = Pooled.of(pooled_map.values, count_positions(x))
        mean, var = running or self._batch_moments(pooled)
        a, b, bias = norm_coefficients(mean, var, self.weight, self.bias, self.eps)
        coefficients = a, b, None
        if gate is not None:
            if not gate.reads_input:
                pooled = resolve_ties(pooled, upcast(x[:, :, 0, 0].detach()), a)
            coefficients = gate.coefficients(pooled, a, b, bias)
        a, b, sigmoid = expand(coefficients, x)
        added = residual if residual is None else residual.to(wide.dtype)
        return pooled_map.recalibrate(a, b, added, relu, sigmoid=sigmoid).to(x.dtype)

    def _gate_by_input(
        self, gate: Gate, x: Tensor, out: Tensor, residual: Tensor | None, relu: bool
    ) -> Tensor:
        """Gate the normalised feature map `out` by the pooled values of the norm's input x."""
        for hook in gate._forward_pre_hooks.values():  # pruning sets the parameters in one
            hook(gate, (out,))
        zeros = upcast(x.new_zeros(self.num_features))
        ones = torch.ones_like(zeros)
        bias = self.bias if self.affine else zeros
        a, b, _ = gate.coefficients(gate.pool_map(x), ones, zeros, bias)
        return recalibrate(out, present(a), b, residual, relu)

    def _check_and_count_batch(self, x: Tensor) -> None:
        if self.training or self.running_mean is None:
            check_values(x.numel() // self.num_features)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their names, those of the gate, too, as `nn.Module` does.

        Warns where this is the norm of a network by `attach` and the gate has layers: code that
        collects parameters by the type of modules, here and from these layers, has them twice.
        """
        layers = [] if self.gate is None else [*self.gate.modules()][1:]
        if recurse and CONVERTED in vars(self) and any(m._parameters for m in layers):
            warnings.warn(
                "the parameters of a gated norm include those of its gate, whose layers have them"
                " too: for the groups of an optimizer write spem.parameter_groups(model, …)",
                stacklevel=3,
            )
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or train the norm and its gate, as `nn.Module` does."""
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(requires_grad)
        return self

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (the name of nn.BatchNorm2d)
        check_map("x", input)
        if sizes_are_known(input) and input.shape[1] != self.num_features:
            raise ValueError(
                f"the norm was built for {self.num_features} channels, the input is "
                f"{tuple(input.shape)}, must be (N, {self.num_features}, H, W)"
            )

    def _running(self) -> tuple[Tensor, Tensor] | None:
        if self.running_mean is None or self.running_var is None:
            return None
        return self.running_mean, self.running_var

    def _batch_moments(self, pooled: Pooled) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance of the batch, (C,), and track them in training."""
        means, variances = present(pooled.mean), present(pooled.var)
        images = self._count_images(means)
        values = images * pooled.count
        if not isinstance(values, Tensor):
            check_values(values)
        add = AllReduce.apply if self._synchronises() else None
        mean, var = merge_moments(means, variances, images, add)
        if self.training:
            track_statistics(self, mean.detach(), var.detach() * (values / (values - 1)))
        return mean, var

    def _synchronises(self) -> bool:
        return self.sync and self.training and dist.is_available() and dist.is_initialized()

    def _count_images(self, means: Tensor) -> int:
        """Return the number of images of all processes that share the statistics."""
        if not self._synchronises():
            return means.shape[0]  # not len: under a tracer the size must stay a variable
        count = torch.tensor(len(means), device=means.device)
        dist.all_reduce(count)
        return int(count)


def check_values(count: int) -> None:
    """Raise ValueError where a batch has a single value of each channel: it has no variance."""
    if count <= 1:
        raise ValueError("training needs more than one value a channel, got a single one")


class AllReduce(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the sum; the tensors of all processes have one shape."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        return AllReduce.apply(grad)
