"""A device that is out of memory or lost, a process that died: one sentence with what helps."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.multiprocessing.spawn import (
    ProcessException,
    ProcessExitedException,
    ProcessRaisedException,
)

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
        raise ValueError(sentence + _tell_saved(folder)) from error


def describe_process(error: ProcessException, folder: Path) -> Exception:
    """Return the error of one of several processes as if there were one alone.

    Args:
        error: of the process that has started them.
        folder: of the run.
    """
    if isinstance(error, ProcessRaisedException):
        kind, _, text = str(error).strip().rpartition("\n")[2].partition(": ")
        return {"ValueError": ValueError, "OSError": OSError}.get(kind, lambda _: error)(text)
    if isinstance(error, ProcessExitedException):
        how = error.signal_name or f"exit code {error.exit_code}"
        why = f"a process of the run died ({how}), perhaps for want of memory"
        return ChildProcessError(why + _tell_saved(folder))
    return error


def _tell_saved(folder: Path) -> str:
    saved = any(folder.rglob("checkpoint.pt"))
    return f"; the state of the last epoch is kept in {folder}" if saved else ""
