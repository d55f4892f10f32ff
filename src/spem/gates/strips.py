"""The means of the rows and of the columns of a feature map."""

from torch import Tensor

from spem.kernels.reference import upcast


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means over the width, (N, C, H), and over the height, (N, C, W), in float32.

    Args:
        x: (N, C, H, W).
    """
    wide = upcast(x)
    return wide.mean(3), wide.mean(2)
