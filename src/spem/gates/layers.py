"""PyTorch's layers, which compute in the dtype of their input whatever that of their parameters.

The parameters of gates are float32 but for those that somebody assigned or loaded in another dtype
(`load_state_dict(…, assign=True)`, `parameter.data = …`); PyTorch's own layers refuse these.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spem.gates.affine import track_statistics


class _InInputDtype(nn.Module):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of PyTorch's layers)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = buffer.to(input.dtype)  # where updates are to stay
        own = self._parameters.items()
        cast = {k: p.to(input.dtype) for k, p in own if p is not None and p.dtype != input.dtype}
        return functional_call(self, cast, (input,)) if cast else super().forward(input)


class Linear(_InInputDtype, nn.Linear):
    """A linear layer in the dtype of its input."""


class Conv1d(_InInputDtype, nn.Conv1d):
    """A convolution over one dimension in the dtype of its input."""


class Conv2d(_InInputDtype, nn.Conv2d):
    """A convolution over two dimensions in the dtype of its input."""


class BatchNorm1d(_InInputDtype, nn.BatchNorm1d):
    """A batch normalisation of (N, C) in the dtype of its input."""


class BatchNorm2d(_InInputDtype, nn.BatchNorm2d):
    """A batch normalisation of (N, C, H, W) in the dtype of its input."""

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics by those of a batch, (C,), the variance unbiased."""
        track_statistics(self, mean, variance)


class LayerNorm(_InInputDtype, nn.LayerNorm):
    """A normalisation of the last dimension in the dtype of its input."""


class _TraceableGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        # PyTorch's asks about sizes, which a trace cannot answer, and refuses single values.
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class GroupNorm(_InInputDtype, _TraceableGroupNorm):
    """A normalisation of groups of channels in the dtype of its input."""
