"""The folder of a run and its checkpoint, which is written whole or not at all."""

import pickle
import shutil
import zipfile
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from spem._files import atomically, write_text
from spem._messages import not_found
from spem.models.user_files import sums_by_name
from spem.train.recipe import Recipe, load_recipe

FILES = (
    "recipe.yaml",
    "checkpoint.pt",
    "metrics.csv",
    "config.json",
    "model.safetensors",
    "curves.png",
    "summary.json",
    "placement.json",
    "per_class.csv",
    "confusion.png",
    "mistakes.html",
)
# Folders of a run: what else has logged it.
LOGS = ("tensorboard", "wandb")
# The keys that a resumed run may change: where and how it computes, not what. `init` acts through
# `gate_options`, and files to import are told apart by their sums.
FREE_KEYS = ("data_dir", "download", "device", "threads", "progress", "logger", "init", "import_")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, with a checksum of every tensor, and replace the last one.

    Args:
        path: the file.
        state: tensors, numbers, strings and containers of them.

    Raises:
        OSError: the file cannot be written; the last one is kept.
    """
    with atomically(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's, about the system's of a full disk
            if not isinstance(cause := error.__context__, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` wrote, with its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"the checkpoint {path} is damaged") from error
    raise ValueError(f"the checkpoint {path} is damaged: {damaged} fails its checksum")


def refuse_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise an error unless a run may use a folder.

    Args:
        folder: the folder.
        recipe: the recipe of the run.
        resume: whether the run continues the one in the folder, perhaps to more epochs.
        overwrite: whether the run replaces the one in the folder.

    Raises:
        FileExistsError: the folder is in use, and `resume` and `overwrite` are both false.
        FileNotFoundError: there is nothing to resume.
        ValueError: `resume` and `overwrite` are both true, or the run to resume has another recipe,
            or it is to have more epochs and a cosine schedule.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise not_found(folder, "run to resume", "recipe.yaml")
        stored, given = asdict(load_recipe(str(folder / "recipe.yaml"))), asdict(recipe)
        # Mean and std that were left open are those that the run has measured.
        free = {*FREE_KEYS, *(k for k in ("mean", "std") if given[k] is None)}
        differ = [k for k in stored if stored[k] != given[k] and k not in free]
        if differ == ["epochs"] and given["epochs"] > stored["epochs"]:
            _refuse_cosine(folder, stored, given["epochs"])
        elif differ:
            changes = ", ".join(f"{k} ({stored[k]!r} there, {given[k]!r} now)" for k in differ)
            raise ValueError(f"the run in {folder} has another recipe: {changes}")
        _refuse_other_files(folder, stored["import_"], given["import_"])
    elif folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} exists: resume it, overwrite it, or name another folder")


def _refuse_other_files(folder: Path, stored: list[str], given: list[str]) -> None:
    """Raise ValueError unless a resumed run has the Python files that it began with."""
    sums, now = sums_by_name(stored), sums_by_name(given)
    if missing := sums.keys() - now.keys():
        raise ValueError(f"the run in {folder} needs --import {' '.join(sorted(missing))}")
    for name, wanted in sums.items():
        if now[name] != wanted:
            raise ValueError(f"{name} has changed since the run in {folder} began: restore it")


def _refuse_cosine(folder: Path, stored: dict[str, Any], epochs: int) -> None:
    if stored["schedule"] == "cosine":
        raise ValueError(
            f"the run in {folder} has a cosine schedule of {stored['epochs']} epochs, at whose end"
            f" the rate is zero, so it cannot go on to {epochs}: train a new run of {epochs}"
            f" epochs, or one that starts from its weights (weights: {folder})"
        )


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Return whether a folder holds a finished run of as many epochs as a recipe has.

    Args:
        folder: of a run with this recipe, or with fewer epochs.
        recipe: of the run.
    """
    if not (folder / "summary.json").exists():
        return False
    return load_recipe(str(folder / "recipe.yaml")).epochs == recipe.epochs


def extend(folder: Path, recipe: Recipe) -> str | None:
    """Let the run in a folder go on to more epochs, if a recipe has more than its own.

    Args:
        folder: of the run.
        recipe: accepted by `refuse_folder`.

    Returns:
        What has changed, or None if nothing has.
    """
    stored = load_recipe(str(folder / "recipe.yaml"))
    if stored.epochs == recipe.epochs:
        return None
    # A folder without a summary is that of a run to continue, whatever its recipe says.
    (folder / "summary.json").unlink(missing_ok=True)
    write_text(folder / "recipe.yaml", replace(stored, epochs=recipe.epochs).to_yaml())
    return (
        f"The run in {folder} goes on from epoch {stored.epochs} to {recipe.epochs}, with the"
        f" {recipe.schedule} schedule of a run of {recipe.epochs}: its recipe is changed, and its"
        " summary, curves and weights are replaced at the end."
    )


def new_folder(folder: Path | None, recipe: Recipe) -> Path:
    """Create a run's folder, or empty it of an earlier run, and write the recipe.

    Args:
        folder: its path; None: `runs/MODEL-GATE-DATA-N` with the first free number N.
        recipe: written as `recipe.yaml`.

    Returns:
        The path of the folder.
    """
    name = f"{recipe.model}-{recipe.gate or 'plain'}-{Path(recipe.data).name}"
    numbered = (Path("runs", f"{name}-{number}") for number in count())
    while folder is None:
        with suppress(FileExistsError):
            (path := next(numbered)).mkdir(parents=True)
            folder = path
    folder.mkdir(parents=True, exist_ok=True)
    for old in _folders_of(folder):
        for name in FILES:
            (old / name).unlink(missing_ok=True)
        for name in LOGS:
            shutil.rmtree(old / name, ignore_errors=True)
        if old != folder and not any(old.iterdir()):
            old.rmdir()
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    return folder


def _folders_of(folder: Path) -> list[Path]:
    """Return the folders of the replicas in a folder, and the folder itself."""
    try:
        recipe = load_recipe(str(folder / "recipe.yaml"))
    except (ValueError, OSError):
        return [folder]
    inner = [] if recipe.replicas == 1 else sorted(folder.glob("seed-*/"))
    return [*inner, folder]
