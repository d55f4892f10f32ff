"""NAM: the scales of a norm say how much each channel counts."""

from torch import Tensor

from spem._checks import check_normalises
from spem.functional import Pooled
from spem.gates.affine import merge_moments, norm_coefficients
from spem.gates.attention import multiply, refuse_identity
from spem.gates.gate import present
from spem.gates.layers import BatchNorm2d
from spem.gates.position import Logits, PositionGate
from spem.kernels.reference import upcast


class NAM(PositionGate):
    """Normalization-based Attention Module, its channel part.

    z = BN(x) by a norm of its own, with the scale γ; w_c = |γ_c| / Σ|γ|, which is not
    differentiated; y = x·σ(w_c·z). 2C parameters. Where all γ are 0, w is 0.

    Args:
        channels: C.
        init: "paper" (γ = 1, β = 0: w = 1/C, multiplier about ½); the multipliers follow the
            feature map, so there is no start at the identity.

    Raises:
        ValueError: init is "identity"; training with a single value to normalise.

    Source: Liu, Shao, Teng and Hoffmann, "NAM: Normalization-based Attention Module", NeurIPS 2021
        Workshops (arXiv 2111.12419). Its spatial part was never released.
    """

    traceable = True
    normalises = True

    def __init__(self, channels: int, *, init: str = "paper"):
        super().__init__(channels, init)
        refuse_identity("NAM", init, "its multipliers follow the feature map from the start")
        self.bn = BatchNorm2d(channels)

    @property
    def statistics(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the norm reads of a batch: nothing where it has running statistics to use."""
        by_batch = self.bn.training or self.bn.running_mean is None
        return ("mean", "var") if by_batch else ()

    @property
    def reads_statistics_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the norm is still its own, and not one that replaced it, as SyncBatchNorm."""
        return type(self.bn) is BatchNorm2d

    def logits(self, pooled: Pooled) -> Logits:
        """Return slope and offset, w times the affine map of the norm, and None."""
        scale, shift = self._normalise(pooled)
        weights = self._weights()
        return (weights * scale)[None], (weights * shift)[None], None

    def _normalise(self, pooled: Pooled) -> tuple[Tensor, Tensor]:
        """Return scale and shift of the norm, (C,), and track its statistics in training."""
        norm = self.bn
        mean, var = norm.running_mean, norm.running_var
        if norm.training or mean is None or var is None:
            means = present(pooled.mean)
            mean, var = merge_moments(means, present(pooled.var))
            if norm.training:
                values = means.shape[0] * pooled.count
                norm.track(mean.detach(), var.detach() * (values / (values - 1)))
        scale, shift, _ = norm_coefficients(
            upcast(mean), upcast(var), norm.weight, norm.bias, norm.eps
        )
        return scale, shift

    def _weights(self) -> Tensor:
        scale = upcast(self.bn.weight).detach().abs()
        total = scale.sum()
        return scale / total.where(total > 0, 1)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(gate(x) + residual), see `Gate.forward`."""
        self.check_map(x)
        check_normalises("NAM", self, x)
        return super().forward(x, residual, relu, overwrite=overwrite)

    def weigh(self, x: Tensor) -> Tensor:
        """See `PositionGate.weigh`."""
        # A norm keeps its input for the backward pass: its output may be overwritten.
        logits = self.bn(upcast(x)).mul_(self._weights()[:, None, None])
        return multiply(x, logits.sigmoid_())
