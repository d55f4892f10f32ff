"""The folder of a run: its four states, its lock, and which run may use it.

* nothing: the folder is absent, or holds no more than leftovers of interrupted writes;
* started: it has `recipe.yaml`;
* training: it has `checkpoint.pt`, too; `metrics.csv` may be an epoch behind;
* finished: it has `summary.json`, which is written last and has the SHA-256 sums of the files
  that follow from the checkpoint. Where one of them is missing or altered, the folder counts as
  training: resuming it makes them again and trains nothing.

A run holds the lock of its folder, which the system frees when the process dies.
"""

import csv
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._files import check_size, is_leftover, remove_leftovers, write_text
from spem._messages import not_found, shorten
from spem.models.user_files import sums_by_name
from spem.train.identity import FOUND_KEYS, FREE_KEYS, identity
from spem.train.keys import ENDING
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.summary import read_summary

with needs_extra("train"):
    from filelock import FileLock, Timeout

# Made again from the checkpoint; the summary has their sums.
DERIVED = ("metrics.csv", "config.json", "model.safetensors", "curves.png")
FILES = ("summary.json", "checkpoint.pt", *DERIVED, "placement.json")
FILES += ("per_class.csv", "confusion.png", "mistakes.html", "recipe.yaml")
# Folders of a run: what else has logged it.
LOGS = ("tensorboard", "wandb")
# Below it are the folders of runs that are given none.
RUNS = Path("runs")
_LOCK = ".lock"
_log = logging.getLogger("spem")


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
            or it is to have more epochs and a cosine or onecycle schedule.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise not_found(folder, "run to resume", "recipe.yaml")
        stored, given = asdict(load_recipe(str(folder / "recipe.yaml"))), asdict(recipe)
        # What was left open is what the run has measured.
        free = {*FREE_KEYS, *(k for k in FOUND_KEYS if given[k] in (None, "auto"))}
        differ = [k for k in stored if stored[k] != given[k] and k not in free]
        if differ == ["epochs"] and given["epochs"] > stored["epochs"]:
            _refuse_ending(folder, stored, given["epochs"])
        elif differ:
            changes = ", ".join(
                f"{k} ({shorten(stored[k])} there, {shorten(given[k])} now)" for k in differ
            )
            raise ValueError(f"the run in {folder} has another recipe: {changes}")
        _refuse_other_files(folder, stored["import_"], given["import_"])
    elif not overwrite and not _is_free(folder):
        raise FileExistsError(f"{folder} exists: resume it, overwrite it, or name another folder")


def _is_free(folder: Path) -> bool:
    """Return whether a folder holds nothing but a lock and leftovers of interrupted writes."""
    return not folder.exists() or all(
        path.name == _LOCK or is_leftover(path, FILES) for path in folder.iterdir()
    )


def _refuse_other_files(folder: Path, stored: list[str], given: list[str]) -> None:
    """Raise ValueError unless a resumed run has the Python files that it began with."""
    sums, now = sums_by_name(stored), sums_by_name(given)
    if missing := sums.keys() - now.keys():
        raise ValueError(f"the run in {folder} needs --import {' '.join(sorted(missing))}")
    for name, wanted in sums.items():
        if now[name] != wanted:
            raise ValueError(f"{name} has changed since the run in {folder} began: restore it")


def _refuse_ending(folder: Path, stored: dict[str, Any], epochs: int) -> None:
    if stored["schedule"] in ENDING:
        raise ValueError(
            f"the run in {folder} has a {stored['schedule']} schedule of {stored['epochs']} epochs,"
            f" at whose end the rate is zero, so it cannot go on to {epochs}: train a new run"
            f" of {epochs} epochs, or one that starts from its weights (weights: {folder})"
        )


@contextmanager
def locked(
    folder: Path, files: Sequence[str] = FILES, holder: str = "another run trains"
) -> Iterator[None]:
    """Hold a folder, and remove what interrupted writes have left in it.

    Args:
        folder: it is created where it is absent.
        files: names of the files that are written in it; those of a run if not given.
        holder: what the error says of whoever else holds it.

    Raises:
        ValueError: somebody else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{holder} in {folder}: wait for it, or name another folder") from None
    except (OSError, NotImplementedError) as error:
        _log.warning("%s cannot be locked (%s): let no other run use it", folder, error)
    try:
        remove_leftovers(folder, files)
        yield
    finally:
        lock.release()


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Return whether a folder holds a finished run of as many epochs as a recipe has.

    Args:
        folder: of a run with this recipe, or with fewer epochs.
        recipe: of the run.

    Raises:
        ValueError: a file of a finished run is missing or altered, and so is the checkpoint from
            which it could be made again.
    """
    try:
        summary = read_summary(folder, recipe.replicas)
    except (OSError, ValueError):  # none, or a damaged one, which is made again
        return False
    stored = load_recipe(str(folder / "recipe.yaml"))
    if stored.epochs != recipe.epochs:
        return False
    if recipe.replicas > 1:
        seeds = range(recipe.seed, recipe.seed + recipe.replicas)
        return all(
            is_finished(replica_folder(folder, seed), replace(recipe, seed=seed, replicas=1))
            for seed in seeds
        )
    damaged = _find_damaged(folder, summary, stored)
    if damaged and not (folder / "checkpoint.pt").is_file():
        raise ValueError(
            f"{folder / damaged[0]} is missing or altered, and there is no checkpoint.pt from which"
            " it could be made again"
        )
    return not damaged


def _find_damaged(folder: Path, summary: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return the names of the files of a finished run that are missing or altered."""
    if "identity" in summary and summary["identity"] != identity(recipe):
        return ["summary.json"]
    if "files" in summary:
        return [name for name, total in summary["files"].items() if _sum(folder / name) != total]
    # Of earlier versions, which have written no sums.
    damaged = [name for name in DERIVED[1:3] if not (folder / name).is_file()]
    return damaged if _count_rows(folder / DERIVED[0]) == recipe.epochs else [DERIVED[0], *damaged]


def _count_rows(path: Path) -> int:
    try:
        check_size(path)
        with path.open(newline="") as file:
            return sum(1 for _ in csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return -1


def _sum(path: Path) -> str | None:
    try:
        if path.suffix != ".safetensors":  # weights may be of any size
            check_size(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def sums_of_derived(folder: Path) -> dict[str, str | None]:
    """Return the SHA-256 sums of the files that follow from a run's checkpoint, by name."""
    return {name: _sum(folder / name) for name in DERIVED}


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


def number_folder(recipe: Recipe) -> Path:
    """Create the folder `runs/MODEL-GATE-DATA-N` with the first free number N."""
    # A colon or a slash in the name of another library's network cannot stand in that of a folder.
    model = re.sub(r"[:/\\]+", "-", recipe.model).strip("-")
    name = f"{model}-{recipe.gate or 'plain'}-{Path(recipe.data).name}"
    numbers = count()
    while True:
        with suppress(FileExistsError):
            (path := RUNS / f"{name}-{next(numbers)}").mkdir(parents=True)
            return path


def new_folder(folder: Path, recipe: Recipe) -> Path:
    """Create a run's folder, or empty it of an earlier run, and write the recipe.

    Args:
        folder: its path.
        recipe: written as `recipe.yaml`.

    Returns:
        The path of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in _folders_of(folder):
        for (
            name
        ) in FILES:  # the summary first and the recipe last: no state is mistaken for another
            (old / name).unlink(missing_ok=True)
        for name in LOGS:
            shutil.rmtree(old / name, ignore_errors=True)
        if old != folder and not any(old.iterdir()):
            old.rmdir()
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    return folder


def replica_folder(folder: Path, seed: int) -> Path:
    """Return the folder of the run of one seed, in the common folder of replicas."""
    return folder / f"seed-{seed}"


def _folders_of(folder: Path) -> list[Path]:
    """Return the folders of the replicas in a folder, and the folder itself."""
    try:
        recipe = load_recipe(str(folder / "recipe.yaml"))
    except (ValueError, OSError):
        return [folder]
    inner = [] if recipe.replicas == 1 else sorted(folder.glob("seed-*/"))
    return [*inner, folder]
