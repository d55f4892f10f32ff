"""The base of all pooled gates: it owns the pipeline, a method is its `excite`."""

import torch
from torch import Tensor, nn

from spem.functional import Pooled, pool, recalibrate


class Gate(nn.Module):
    """Channel attention whose multipliers follow from the pooled values of a map.

    A subclass sets `statistics` to the pooled values it reads and defines `excite`.

    Args:
        channels: C, the number of channels of the maps it gates.

    Attributes:
        gain: buffer, a constant factor of the multipliers: 1, or what makes the start of
            `init="identity"` exactly 1.

    Raises:
        ValueError: channels is not a whole number of at least 1.
    """

    gain: Tensor
    statistics: tuple[str, ...]

    def __init__(self, channels: int):
        super().__init__()
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels is {channels!r}, must be a whole number of at least 1")
        self.channels = channels
        self.register_buffer("gain", torch.ones(()))

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multiplier of every channel, (N, C), from the pooled values."""
        raise NotImplementedError(f"{type(self).__name__} does not define excite")

    def auxiliary_loss(self) -> Tensor | None:
        """Return this gate's term of the training loss, weight included; None without one."""
        return None

    def multiplier(self, pooled: Pooled) -> Tensor:
        """Return gain · excite(pooled), (N, C), in float32 or wider, under autocast too."""
        with torch.autocast(self.gain.device.type, enabled=False):
            return self.gain * self.excite(pooled)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return relu(multiplier · x + residual).

        Args:
            x: (N, C, H, W).
            residual: (N, C, H, W), added after the recalibration.
            relu: whether negative results become 0.

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_channels(x)
        return recalibrate(
            x, self.multiplier(pool(x, self.statistics)), residual=residual, relu=relu
        )

    def check_channels(self, x: Tensor) -> None:
        """Raise ValueError unless x is (N, C, H, W) with the channels of this gate."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"the gate was built for {self.channels} channels, the input is {tuple(x.shape)}"
            )


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Sum the auxiliary losses of all gates of a model, weights included.

    Returns:
        A scalar on the model's device, 0 where no gate has such a loss.
    """
    terms = [module.auxiliary_loss() for module in model.modules() if isinstance(module, Gate)]
    present = [term for term in terms if term is not None]
    if present:
        return torch.stack(present).sum()
    return torch.zeros((), device=next((p.device for p in model.parameters()), None))


def present(statistic: Tensor | None) -> Tensor:
    """Return a pooled statistic that a gate reads, or raise ValueError where it was left out."""
    if statistic is None:
        raise ValueError("the pooled values lack a statistic that this gate reads")
    return statistic
