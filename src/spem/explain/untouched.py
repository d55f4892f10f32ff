"""Look into a network without a trace: its modes and the generators are put back."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._messages import shorten


@contextmanager
def in_evaluation(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network in evaluation mode while the block runs.

    Afterwards each of its modules is in the mode that it had, and the generators of random numbers
    stand where they stood. What `torch.compile` has made runs uncompiled, or hooks that are added
    would not be called.

    Args:
        model: the network.
        device: of its images.

    Raises:
        ValueError: it is no module, or one of `torch.jit`, whose parts have no hooks.
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the model is one of torch.jit: give the module that it was made of")
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _uncompiled():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _uncompiled() -> AbstractContextManager[object]:
    # The compiler takes a second to import; where nobody has, nothing is compiled.
    imported = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if imported else nullcontext()


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
