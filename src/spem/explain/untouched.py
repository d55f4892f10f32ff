"""Look into a network without a trace: its modes and the generators are put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._messages import shorten


@contextmanager
def in_evaluation(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network in evaluation mode while the block runs.

    Afterwards each of its modules is in the mode that it had, and the generators of random numbers
    stand where they stood.

    Args:
        model: the network.
        device: of its images.
    """
    check_module(model)
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def read_logits(output: object) -> Tensor:
    """Return the logits (N, classes) that a classifier has returned; Hugging Face's name them.

    Raises:
        ValueError: there are none.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"the model gave {shorten(output)}, must give logits (N, classes): wrap it in a module"
            " that returns these alone"
        )
    return logits
