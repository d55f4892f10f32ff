"""A device that is out of memory, or lost: one sentence with what helps."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from spem.train.recipe import Recipe

# What PyTorch's allocator for the CPU says, in a plain RuntimeError.
_NO_MEMORY = ("can't allocate memory", "not enough memory")
_LOST = (getattr(torch, "AcceleratorError", torch.OutOfMemoryError),)


def describe_failure(error: RuntimeError, advice: str = "--device cpu may have more") -> str | None:
    """Return what happened to the device of a computation; None if an error is of another kind.

    Args:
        error: that PyTorch has raised.
        advice: what helps where the memory was too small.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or any(words in reason for words in _NO_MEMORY):
        return f"out of memory{_tell_peak()}: {advice}"
    if isinstance(error, _LOST) or reason.startswith(("CUDA error", "CUDA driver error")):
        return f"the device was lost: {reason[:200]}"
    return None


def _tell_peak() -> str:
    """Return in words how much was in use at most on the GPU, or by this process without one."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
    elif os.name == "posix":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        return ""
    return f", at a peak of {peak / 2**30:.1f} GiB"


@contextmanager
def explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turn the failure of a device in a training into a ValueError that says what helps.

    Args:
        recipe: of the run.
        folder: of the run, with the state of the last epoch.
    """
    try:
        yield
    except RuntimeError as error:
        batch, parts = recipe.batch_size, 2 * recipe.accumulate
        advice = f"accumulate {parts} takes batches of {batch} images in about half the memory"
        if parts > batch:
            advice = "a smaller network, or smaller images, take less"
        sentence = describe_failure(error, advice)
        if sentence is None:
            raise
        if any(folder.rglob("checkpoint.pt")):
            sentence += f"; the state of the last epoch is kept in {folder}"
        raise ValueError(sentence) from error
