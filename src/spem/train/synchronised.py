"""Batch normalisation by the statistics of all processes, for every norm of a network."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spem.gates import layers
from spem.gates.affine import norm_coefficients
from spem.kernels.reference import upcast
from spem.norm import AllReduce, GatedBatchNorm2d, check_values, track_statistics


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Let all norms, those inside gates too, use the batch statistics of all processes.

    The keys of the state dict stay. A network of PyTorch's norms alone gets PyTorch's own on GPUs.

    Args:
        model: changed in place.
        device: on which it will be trained.

    Raises:
        ValueError: it has a norm of another kind than `nn.BatchNorm1d` and `nn.BatchNorm2d`.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if device.type == "cuda" and not any(isinstance(norm, GatedBatchNorm2d) for norm in norms):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    other = {type(n) for n in norms if not isinstance(n, GatedBatchNorm2d)} - _SYNCHRONISED.keys()
    if other:
        raise ValueError(
            f"sync_batchnorm cannot share the statistics of {other.pop().__name__}: BatchNorm1d,"
            " BatchNorm2d and GatedBatchNorm2d are possible"
        )
    for norm in norms:
        if isinstance(norm, GatedBatchNorm2d):
            norm.sync = True
        else:
            norm.__class__ = _SYNCHRONISED[type(norm)]
    return model


class _Synchronised(_BatchNorm):
    """A norm that takes the mean and the variance of the batches of all processes."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.BatchNorm2d)
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        places = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        wide = upcast(input)
        count = torch.tensor(float(input.numel() // self.num_features), device=input.device)
        dist.all_reduce(count)
        check_values(int(count))
        mean = AllReduce.apply(wide.sum(places)) / count
        squares = AllReduce.apply((wide - mean.view(shape)).square().sum(places))
        track_statistics(self, mean.detach(), squares.detach() / (count - 1))
        scale, shift, _ = norm_coefficients(mean, squares / count, self.weight, self.bias, self.eps)
        return (wide * scale.view(shape) + shift.view(shape)).to(input.dtype)


class _Synchronised1d(_Synchronised, layers.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, layers.BatchNorm2d):
    pass


_SYNCHRONISED = {nn.BatchNorm1d: _Synchronised1d, nn.BatchNorm2d: _Synchronised2d}
_SYNCHRONISED |= {layers.BatchNorm1d: _Synchronised1d, layers.BatchNorm2d: _Synchronised2d}
_SYNCHRONISED |= {norm: norm for norm in (_Synchronised1d, _Synchronised2d)}
