"""Training: one recipe in, one run's folder out."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from spem._extras import needs_extra
from spem.data.dataset import image_format
from spem.export.network import load_network, load_weights
from spem.train import checkpoint
from spem.train.devices import create_fabric, disconnect
from spem.train.job import Job, network_config, prepare, train_jobs
from spem.train.recipe import Recipe
from spem.train.replicas import Replicas, replica_folder

with needs_extra("train"):
    from lightning_fabric import Fabric
    from rich import get_console

__all__ = ["Interrupted", "Result", "fit"]

_MODEL_KEYS = ("model", "block", "gate", "gate_options", "placement", "mask")


class Result(NamedTuple):
    """A finished run: its folder, the content of `summary.json`, the model in eval mode.

    Of several replicas the folder is the one of them all, the summary has means and deviations
    over the seeds, and the model is that of the first seed.
    """

    folder: Path
    summary: dict[str, Any]
    model: nn.Module


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the run in `folder`, where its state is saved."""

    def __init__(self, folder: Path):
        super().__init__(f"interrupted; the state of the run is saved in {folder}")
        self.folder = folder


def fit(
    recipe: Recipe,
    model: nn.Module | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Train a network and write the folder of the run.

    On the CPU the same recipe, seed, threads and versions give the same weights, losses and
    accuracies, bit for bit, whether or not the run was interrupted and resumed. For the order of
    an epoch follows from the seed and the epoch, and what a step draws (augmentation, dropout)
    from the seed, the epoch, the step and the process; the caller's generators stay as they are.

    Several devices are one process each. They are spawned, so a script needs its
    `if __name__ == "__main__"`; under torchrun its processes are used.

    Several `replicas` are runs of successive seeds in one process, which take their steps in turn.
    Each has a folder `seed-S` in the folder of them all, as a run of its own would write it, and
    gives what that run would give: bit for bit on the CPU; on CUDA, where each has a stream of its
    own, bit for bit under `torch.use_deterministic_algorithms(True)`, else up to rounding, as two
    runs of one seed there. Their times share the device.

    Args:
        recipe: everything that decides the run.
        model: a classifier, images (N, C, H, W) to logits (N, classes), that is trained in place;
            None: the recipe's model and gate.
        out: the run's folder; None: `runs/MODEL-GATE-DATA-N` with the first free number N.
        resume: continue the run in `out` where it stopped. One that is finished is returned.
        overwrite: replace the run in `out`.

    Returns:
        The folder, the summary and the model with the stored weights, which are the averaged ones
        where the recipe has `ema`.

    Raises:
        ValueError: recipe, data, model and machine do not fit, or a training loss is not finite.
        FileExistsError: `out` is in use.
        FileNotFoundError: the data, the weights or the run to resume are not there.
        Interrupted: Ctrl-C. A single process has saved its state after the step, several the one
            after their last epoch.
    """
    if resume and out is None:
        raise ValueError("resume needs the folder of a run as out")
    if recipe.replicas > 1 and model is not None:
        raise ValueError(
            f"replicas is {recipe.replicas}, must be 1 for a given model, which is one network"
        )
    recipe = resolve(recipe, model)
    fabric = create_fabric(recipe)
    folder = None if out is None else Path(out)
    if folder and fabric.is_global_zero:
        checkpoint.refuse_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if folder and resume and (folder / "summary.json").exists():
        get_console().print(f"The run in {folder} is finished: nothing is left to train.")
    elif recipe.replicas > 1:
        folder = _start_replicas(recipe, folder, resume)
    else:
        folder = _start(fabric, recipe, model, folder, resume)
    return _read_result(folder, recipe, model)


def resolve(recipe: Recipe, model: nn.Module | None = None) -> Recipe:
    """Return the recipe with what follows from its data and from the given model written out."""
    channels, side = image_format(recipe.data)
    neutral = [0.5] * channels
    recipe = replace(
        recipe,
        image_size=recipe.image_size or side,
        mean=neutral if recipe.mean is None else recipe.mean,
        std=neutral if recipe.std is None else recipe.std,
    )
    if model is None:
        return recipe
    config = network_config(model)
    name = config["model"] or type(model).__name__
    return replace(recipe, **{key: config[key] for key in _MODEL_KEYS} | {"model": name})


def _start(
    fabric: Fabric, recipe: Recipe, model: nn.Module | None, folder: Path | None, resume: bool
) -> Path:
    """Check everything, then create the folder and train; return the folder."""
    job = prepare(fabric, recipe, model, folder, resume)
    if not resume and fabric.is_global_zero:
        folder = checkpoint.new_folder(folder, recipe)
    try:
        return Path(fabric.launch(partial(_run, job=job, folder=folder)))
    except KeyboardInterrupt:
        raise Interrupted(folder or Path()) from None


def _run(fabric: Fabric, job: Job, folder: Path | None) -> str:
    """Train in one process; the first one writes the results. Return the folder."""
    folder = Path(fabric.broadcast(str(folder)))
    if fabric.world_size > 1:
        # Spawned processes are given one memory for all of them.
        job = job._replace(model=deepcopy(job.model))
    train_jobs([fabric], [job], [folder])
    disconnect(fabric)
    return str(folder)


def _start_replicas(recipe: Recipe, folder: Path | None, resume: bool) -> Path:
    replicas = Replicas(recipe, folder if resume else None)
    if not resume:
        folder = checkpoint.new_folder(folder, recipe)
    try:
        replicas.train(folder or Path())
    except KeyboardInterrupt:
        raise Interrupted(folder or Path()) from None
    return folder or Path()


def _read_result(folder: Path, recipe: Recipe, model: nn.Module | None) -> Result:
    if model is None:
        own = folder if recipe.replicas == 1 else replica_folder(folder, recipe.seed)
        model, _ = load_network(own)
    else:
        load_weights(model, folder)
    return Result(folder, json.loads((folder / "summary.json").read_text()), model.eval())
