"""What carries out pooling and recalibration: the interface that every backend implements.

A new backend derives from `Backend` or, with own passes over feature maps, from
`spem.kernels.autograd.PassesBackend`, and is entered in `spem.kernels` (`_NAMES`,
`why_not`, `_load`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor


class Sigmoid(NamedTuple):
    """A multiplier of every position: σ(slope·x + offset + square·(x − centre)²).

    Attributes:
        slope: (N, C), or None for 0.
        offset: (N, C).
        square: (N, C), or None for 0.
        centre: (N, C), where `square` is given.
    """

    slope: Tensor | None
    offset: Tensor
    square: Tensor | None = None
    centre: Tensor | None = None


class PooledMap(NamedTuple):
    """A feature map that was pooled and is to be recalibrated.

    Attributes:
        values: the statistics by name, each (N, C), differentiable.
        recalibrate: (scale, shift, residual, relu, overwrite=False, sigmoid=None) -> the
            recalibrated feature map, see `Backend.recalibrate`. To be called at most once: its
            backward hands one set of coefficients to that of the pooling.
    """

    values: dict[str, Tensor]
    recalibrate: Callable[..., Tensor]


class Backend(ABC):
    """One implementation of the two operations on feature maps, gradients included.

    Attributes:
        name: as in `spem.kernels.use` and in the records of runs.
        rounds_once: whether the gradients of a feature map from its pooling and from its
            recalibration are added before they are rounded to its dtype; otherwise norms convert it
            to float32 first.
    """

    name: ClassVar[str]
    rounds_once: ClassVar[bool] = False

    @abstractmethod
    def pool(self, x: Tensor, wanted: tuple[str, ...]) -> PooledMap:
        """Pool a feature map that is to be recalibrated.

        Args:
            x: (N, C, H, W).
            wanted: the statistics, of "mean", "var", "max" and "min".
        """

    @abstractmethod
    def recalibrate(
        self,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
        sigmoid: Sigmoid | None = None,
    ) -> Tensor:
        """Return relu(scale·x + shift + residual), or relu((scale·x + shift)·sigmoid + residual).

        Args:
            x: (N, C, H, W).
            scale: (N, C); None is 1, beside a sigmoid.
            shift: (N, C), or None.
            residual: in the shape and dtype of x, or None.
            relu: whether negative results become 0.
            overwrite: whether the result may take the memory of x where no gradient is asked for.
            sigmoid: a factor of each position, which the residual does not have; None is 1.
        """

    def serves(self, x: Tensor) -> bool:
        """Return whether the backend works on a feature map of this device, dtype and size."""
        return True

    def prefers_own_norm(self, x: Tensor, gated: bool) -> bool:
        """Return whether a BatchNorm of x is faster by these operations than by PyTorch's own.

        Args:
            x: (N, C, H, W).
            gated: whether a gate follows that is pooled in the same pass.
        """
        return gated and x.numel() > 0
