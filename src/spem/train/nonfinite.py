"""Steps whose loss or gradient is not finite: noticed before they change weights, and explained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# So many steps left out one after the other end a run: it has no way back.
MOST_IN_A_ROW = 10


class NotFiniteError(ValueError):
    """A step whose loss or gradient is not finite.

    Attributes:
        where: what was not finite first, in words.
    """

    def __init__(self, where: str):
        super().__init__(f"a training step is not finite, first {where}")
        self.where = where


def find_first(model: nn.Module, batches: Sequence[Tensor]) -> str:
    """Return what is not finite first in a training step, in words.

    Args:
        model: in training mode, with the gradients of the step; its running statistics move.
        batches: the images of the step, each (n, C, H, W).
    """
    with torch.no_grad(), _watched_outputs(model) as found:
        for images in batches:  # to the end: processes may exchange statistics
            model(images)
    if not all(images.isfinite().all() for images in batches):
        return "its images"
    if found:
        return f"the output of {found[0]}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the loss"


@contextmanager
def _watched_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets the names of the modules whose outputs are not finite, in order."""
    found: list[str] = []

    def watch(name: str, module: nn.Module):
        kind = type(module).__name__

        def look(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"{name or 'the network'} ({kind})")

        return module.register_forward_hook(look)

    hooks = [watch(name, module) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def is_finite(losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
    """Return whether all values are finite; a device is waited for.

    Args:
        losses: of any shapes.
        gradients: of any shapes; all values of a large tensor are told by its norm.
    """
    sums = torch.stack([loss.double().sum() for loss in losses])
    if gradients:
        norm = torch.nn.utils.get_total_norm(gradients)
        return bool((sums.isfinite().all() & norm.isfinite()).item())
    return bool(sums.isfinite().all().item())
