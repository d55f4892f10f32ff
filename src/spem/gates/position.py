"""The base class of gates whose multiplier at a position follows from its value there."""

import torch
from torch import Tensor

from spem import kernels
from spem._checks import check_switch
from spem.functional import Pooled, check_residual
from spem.gates.gate import Gate, Transform, gated
from spem.kernels.backend import Sigmoid

# Slope, offset and square of a sigmoid, each (N, C) or (1, C); None for 0.
Logits = tuple[Tensor | None, Tensor, Tensor | None]


class PositionGate(Gate):
    """A gate with the multiplier σ(slope·x + offset + square·(x − mean)²) at every position.

    A subclass defines `logits` in the place of `excite`: the three coefficients, from pooled
    values. So the gate reads the feature map as often as channel attention does.
    """

    family = "quadratic"
    # Whether it has a norm of the feature map, by which `weigh` computes the same: in eager mode
    # PyTorch's own norm is faster than pooling, and a module that replaced it must be called.
    normalises = False

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(gate(x) + residual), see `Gate.forward`."""
        pools = kernels.chosen_for_pipeline(x).prefers_own_norm(x, True)
        if not self.normalises or (pools and self.reads_statistics_only):
            return super().forward(x, residual, relu, overwrite=overwrite)
        self.check_map(x)
        check_switch("relu", relu)
        if residual is not None:
            check_residual(x, residual)
        with torch.autocast(x.device.type, enabled=False):
            return gated(None, self.weigh(x), residual, relu)

    def weigh(self, x: Tensor) -> Tensor:
        """Return the gated x, (N, C, H, W), by the gate's norm of x."""
        raise NotImplementedError(f"{type(self).__name__} does not define weigh")

    def logits(self, pooled: Pooled) -> Logits:
        """Return slope, offset and square, each (N, C) or (1, C); None for 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define logits")

    def transform(self, pooled: Pooled) -> Transform:
        """Return the sigmoid, with neither multipliers nor offset."""
        slope, offset, square = self._logits(pooled)
        return None, None, Sigmoid(slope, offset, square, None if square is None else pooled.mean)

    def coefficients(self, pooled: Pooled, scale: Tensor, shift: Tensor, bias: Tensor) -> Transform:
        """Return the norm's affine map and the sigmoid of its input x, see `Gate.coefficients`."""
        slope, offset, square = self._logits(pooled.affine(scale, shift))
        if slope is not None:
            slope, offset = slope * scale, offset + slope * shift
        if square is None:
            return scale, shift, Sigmoid(slope, offset)
        return scale, shift, Sigmoid(slope, offset, square * scale.square(), pooled.mean)

    def _logits(self, pooled: Pooled) -> Logits:
        with torch.autocast(self.gain.device.type, enabled=False):
            return self.logits(pooled)
