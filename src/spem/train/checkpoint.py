"""The checkpoint of a run, which is written whole or not at all."""

import logging
import zipfile
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from spem._files import atomically
from spem._messages import shorten
from spem._schema import History, Natural, NonNegative, check_mapping
from spem.data.splits import other_images
from spem.train.identity import identity
from spem.train.keys import ENDING
from spem.train.recipe import Recipe


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, with a checksum of every tensor, and replace the last one.

    The last one is kept until the new one was read back without an error.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of them.

    Raises:
        OSError: it cannot be written; the last one is kept.
    """
    with atomically(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # PyTorch's, about the system's of a full disk
            if not isinstance(cause := error.__context__, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        if _find_damaged(temporary) is not None:
            raise OSError(f"{path} was not written as it should be: is the disk failing?")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` wrote, with its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or altered, or holds something else.
    """
    try:
        damaged = _find_damaged(path)
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged archive can raise nearly every built-in exception, one of the system's among them.
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"the checkpoint {path} is damaged") from error
    if damaged is not None:
        raise ValueError(f"the checkpoint {path} is damaged: {damaged} fails its checksum")
    if not isinstance(state, dict):
        raise ValueError(f"{path} is no checkpoint of a run")
    return state


def _find_damaged(path: Path) -> str | None:
    """Return the name of the first part that fails its checksum, or None."""
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise zipfile.BadZipFile("a part is compressed: it may grow without end")
        return archive.testzip()


def mark_run(recipe: Recipe, images: str | None) -> dict[str, Any]:
    """Return what a checkpoint says of the run that it belongs to.

    Args:
        recipe: of the run.
        images: see `sum_of_folder`.
    """
    mark = {"identity": identity(recipe), "epochs": recipe.epochs}
    return mark if images is None else mark | {"images": images}


class Position(TypedDict):
    """Where a checkpoint's run is, see `Run`."""

    epoch: Natural
    step: Natural
    seconds: NonNegative
    history: History
    skipped: NotRequired[Natural]
    skipped_in_row: NotRequired[Natural]


def check_run(
    path: Path, state: dict[str, Any], recipe: Recipe, steps: int, images: str | None
) -> None:
    """Raise ValueError where a checkpoint is not that of a run with this recipe.

    Args:
        path: of the checkpoint.
        state: its content; `run` holds what `mark_run` returned, which earlier versions lack.
        recipe: of the run that is to go on.
        steps: of an epoch.
        images: see `sum_of_folder`.
    """
    mark = state.get("run")
    own = mark.get("images") if isinstance(mark, dict) else None  # earlier versions lack it
    if other_images(own, images):
        raise ValueError(
            f"the images of {recipe.data} are not those that the run of {path} began with: files"
            " were added, removed, changed or renamed; bring them back, or start the run anew"
        )
    position = {key: state[key] for key in Position.__annotations__ if key in state}
    try:
        check_mapping("", position, Position)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of a run with this recipe: {error}") from error
    if position["epoch"] != len(position["history"]) or position["step"] >= steps:
        raise ValueError(
            f"{path} is no checkpoint of a run with this recipe: it has"
            f" {len(position['history'])} rows after {position['epoch']} epochs and"
            f" {position['step']} of {steps} steps"
        )
    if mark is None:
        logging.getLogger("spem").warning("%s, of an earlier version, names no run", path)
        return
    if not isinstance(mark, dict) or mark.get("identity") != identity(recipe):
        raise ValueError(f"{path} is the checkpoint of a run with another recipe")
    # The rates of these schedules depend on the number of epochs.
    if mark.get("epochs") != recipe.epochs and recipe.schedule in ENDING:
        raise ValueError(f"{path} is the checkpoint of a run of {mark.get('epochs')} epochs")


def check_form(name: str, stored: Any, own: Any) -> None:
    """Raise ValueError where a stored state has other types or shapes than a state of its kind.

    Args:
        name: of the state, for the error.
        stored: as a checkpoint has it; what it lacks is not looked at.
        own: of the run that is to go on.
    """
    if isinstance(own, int | float) and isinstance(stored, int | float):
        return
    if not isinstance(stored, type(own)):
        raise ValueError(f"{name} is {shorten(stored)}, must be a {type(own).__name__}")
    if isinstance(own, Tensor):
        if stored.shape != own.shape:
            raise ValueError(
                f"{name} has the shape {tuple(stored.shape)}, must have {tuple(own.shape)}"
            )
    elif isinstance(own, dict):
        for key in own.keys() & stored.keys():
            check_form(f"{name}.{key}", stored[key], own[key])
    elif isinstance(own, list | tuple):
        if len(stored) != len(own):
            raise ValueError(f"{name} has {len(stored)} values, must have {len(own)}")
        for index, (one, other) in enumerate(zip(stored, own, strict=True)):
            check_form(f"{name}.{index}", one, other)


def check_optimizer(stored: Any, optimizer: Optimizer) -> None:
    """Raise ValueError where an optimiser's stored state has other shapes than its parameters."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in stored["state"].items():
        for name, value in values.items():
            shape = () if name == "step" else own[index].shape  # AdamW counts in a tensor
            fits = isinstance(value, Tensor) and value.shape == shape
            if value is not None and not fits:
                raise ValueError(f"{name} of parameter {index} is {shorten(value)}")
