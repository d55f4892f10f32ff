"""A run's folder: every file is written whole or not at all, and read back verified."""

import csv
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spem._extras import needs_extra
from spem.models import create_model
from spem.train.recipe import Recipe, load_recipe

with needs_extra("train"):
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

FILES = (
    "recipe.yaml",
    "checkpoint.pt",
    "metrics.csv",
    "config.json",
    "model.safetensors",
    "curves.png",
    "summary.json",
    "placement.json",
)
# What a resumed run may change: where and how it computes, not what.
FREE_KEYS = ("data_dir", "download", "device", "threads", "progress")


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield a file to write beside `path` that takes its name once it is whole and on the disk.

    Args:
        path: the file that appears, or is replaced, if the block ends without an exception.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors keeps its files from all but their owner
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, with a checksum of every tensor, over the last one.

    Args:
        path: the file.
        state: tensors, numbers, texts and containers of them.
    """
    with atomically(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was truncated or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"the checkpoint {path} is damaged") from error
    raise ValueError(f"the checkpoint {path} is damaged: {damaged} fails its checksum")


def save_run(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a model and what is needed to build and use it.

    Args:
        folder: the run's folder.
        model: the network whose weights and buffers are stored.
        config: what becomes `config.json`.
    """
    # Copies, because the format allows neither shared weights nor other orders of memory.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    with atomically(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load_run(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a finished run.

    Args:
        folder: the run's folder.

    Returns:
        The network in eval mode on the CPU, and the content of `config.json`: the arguments of
        `create_model`, `classes` (names), `data`, `image_size` (height, width), `mean` and `std`
        (one number a channel, for pixels in [0, 1]).

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: a file is damaged, or the run trained a network of the user's own.
    """
    config = _read_config(Path(folder) / "config.json")
    if config["model"] is None:
        raise ValueError(
            f"{folder} holds a network of your own: build it and call load_weights(model, folder)"
        )
    keys = ("num_classes", "in_channels", "block", "placement", "mask")
    arguments = {key: config[key] for key in keys if key in config} | config["gate_options"]
    with torch.random.fork_rng([]):  # its first weights are replaced: leave no trace of them
        model = create_model(config["model"], config["gate"], **arguments)
    load_weights(model, folder)
    return model.eval(), config


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        inner = ", ".join(
            str(each.parent) for each in sorted(path.parent.glob("seed-*/config.json"))
        )
        raise FileNotFoundError(
            f"{path.parent} holds no finished run: {path.name} is missing"
            + (f"; those of its seeds lie in {inner}" if inner else "")
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    needed = ["model", "gate", "gate_options", "classes", "data", "image_size", "mean", "std"]
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path} is not that of a run: it lacks {', '.join(missing)}")
    return config


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load stored weights and buffers into a network, every one of which must match.

    Args:
        model: the network, changed in place.
        source: a `.safetensors` file, or the folder of a finished run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names or shapes are not the network's.
    """
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    try:
        stored, own = load_file(path), model.state_dict()
    except SafetensorError as error:
        raise ValueError(f"the weight file {path} is damaged: {error}") from error
    differ = {
        "missing": own.keys() - stored.keys(),
        "unexpected": stored.keys() - own.keys(),
        "of another shape": {
            k for k in own.keys() & stored.keys() if own[k].shape != stored[k].shape
        },
    }
    if any(differ.values()):
        found = "; ".join(f"{what}: {_first(names)}" for what, names in differ.items() if names)
        raise ValueError(f"the weights of {path} are not those of the model: {found}")
    model.load_state_dict(stored)


def _first(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refuse_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise unless a run may use this folder.

    Args:
        folder: the folder that was named.
        recipe: the recipe of the run.
        resume: whether the run continues the one in the folder.
        overwrite: whether the run replaces the one in the folder.

    Raises:
        FileExistsError: the folder is in use, and neither was asked for.
        FileNotFoundError: there is nothing to resume.
        ValueError: both were asked for, or the recipe is not that of the run to resume.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other")
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise FileNotFoundError(f"there is no run to resume in {folder}")
        stored, given = asdict(load_recipe(str(folder / "recipe.yaml"))), asdict(recipe)
        differ = [k for k in stored if stored[k] != given[k] and k not in FREE_KEYS]
        if differ:
            changes = ", ".join(f"{k} ({stored[k]!r} there, {given[k]!r} now)" for k in differ)
            raise ValueError(f"the run in {folder} has another recipe: {changes}")
    elif folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} exists: resume it, overwrite it, or name another folder")


def new_folder(folder: Path | None, recipe: Recipe) -> Path:
    """Create a run's folder, or empty it of an earlier run, and write the recipe.

    Args:
        folder: its path; None: `runs/MODEL-GATE-DATA-N` with the first free number N.
        recipe: becomes `recipe.yaml`.

    Returns:
        The path of the folder.
    """
    if folder is None:
        name = f"{recipe.model}-{recipe.gate or 'plain'}-{Path(recipe.data).name}"
        folder = next(path for n in count() if _create(path := Path("runs", f"{name}-{n}")))
    folder.mkdir(parents=True, exist_ok=True)
    for old in _folders_of(folder):
        for name in FILES:
            (old / name).unlink(missing_ok=True)
        if old != folder and not any(old.iterdir()):
            old.rmdir()
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    return folder


def _folders_of(folder: Path) -> list[Path]:
    """Return the folders of the replicas that lie in a folder, and the folder itself."""
    try:
        recipe = load_recipe(str(folder / "recipe.yaml"))
    except (ValueError, OSError):
        return [folder]
    inner = [] if recipe.replicas == 1 else sorted(folder.glob("seed-*/"))
    return [*inner, folder]


def _create(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file whose columns are the keys of the first row; None leaves a cell empty."""
    with atomically(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw loss and top-1 accuracy over the epochs.

    Args:
        path: the PNG file.
        rows: one a finished epoch, as in `metrics.csv`.
        title: stands above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    left.set_yscale("log")
    epochs = [row["epoch"] for row in rows]
    for axes, key, label in ((left, "loss", "cross-entropy"), (right, "top1", "top-1 accuracy")):
        for split, color in (("train", "C7"), ("validation", "C0"), ("test", "C1")):
            if rows[0][f"{split}_{key}"] is not None:
                values = [row[f"{split}_{key}"] for row in rows]
                axes.plot(epochs, values, f"{color}.-", markersize=4, label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")
