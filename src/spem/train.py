"""Training: one recipe in, one run's folder out."""

import json
import platform
import statistics
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spem import checkpoint
from spem.data import Dataset, image_format, load_dataset
from spem.devices import create_fabric, disconnect, settings, synchronise
from spem.extras import needs_extra
from spem.loop import Run, check_batches
from spem.models import create_model, own_config
from spem.recipes import Recipe

with needs_extra("train"):
    from lightning_fabric import Fabric
    from rich import get_console

__all__ = ["Interrupted", "Result", "fit"]

_UNNAMED: dict[str, Any] = {
    "model": None,
    "block": None,
    "gate": None,
    "gate_options": {},
    "placement": None,
    "mask": None,
}


class Result(NamedTuple):
    """A finished run: its folder, the content of `summary.json`, the model in eval mode."""

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
    recipe = _resolve(recipe, model)
    fabric = create_fabric(recipe)
    folder = None if out is None else Path(out)
    if folder and fabric.is_global_zero:
        checkpoint.refuse_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if folder and resume and (folder / "summary.json").exists():
        get_console().print(f"The run in {folder} is finished: nothing is left to train.")
    else:
        folder = _start(fabric, recipe, model, folder, resume)
    return _read_result(folder, model)


def _resolve(recipe: Recipe, model: nn.Module | None) -> Recipe:
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
    config = _config(model)
    name = config["model"] or type(model).__name__
    return replace(recipe, **{key: config[key] for key in _UNNAMED} | {"model": name})


def _config(model: nn.Module) -> dict[str, Any]:
    """Return the `config` of a model of `create_model`, or its like for one of the user's own."""
    return own_config(model) or _UNNAMED


def _start(
    fabric: Fabric, recipe: Recipe, model: nn.Module | None, folder: Path | None, resume: bool
) -> Path:
    """Check everything, then create the folder and train; return the folder."""
    dataset = load_data(recipe)
    check_batches(fabric.world_size, recipe, dataset)
    network = _build(recipe, dataset) if model is None else model
    macs = _count_macs(network, dataset)
    continued = resume and folder is not None and (folder / "checkpoint.pt").exists()
    if resume and not continued and fabric.is_global_zero:
        get_console().print(f"{folder} holds no checkpoint yet: the run starts from its beginning.")
    if recipe.weights is not None and not continued:
        checkpoint.load_weights(network, recipe.weights)
    if recipe.sync_batchnorm and fabric.world_size > 1:
        network = synchronise(network, fabric.device)
    if not resume and fabric.is_global_zero:
        folder = checkpoint.new_folder(folder, recipe)
    run = partial(_run, recipe=recipe, model=network, dataset=dataset, folder=folder, macs=macs)
    try:
        return Path(fabric.launch(run))
    except KeyboardInterrupt:
        raise Interrupted(folder or Path()) from None


def load_data(recipe: Recipe) -> Dataset:
    """Return the data set of a recipe, split as it says; the errors are those of `load_dataset`."""
    return load_dataset(
        recipe.data,
        data_dir=recipe.data_dir,
        download=recipe.download,
        validation=recipe.validation,
        seed=recipe.seed,
        image_size=recipe.image_size,
    )


def _build(recipe: Recipe, dataset: Dataset) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(recipe.seed)
        return create_model(
            recipe.model,
            recipe.gate,
            num_classes=len(dataset.classes),
            in_channels=dataset.train.images.shape[1],
            block=recipe.block,
            placement=recipe.placement,
            mask=recipe.mask,
            **recipe.gate_options,
        )


def _count_macs(model: nn.Module, dataset: Dataset) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image.

    Raises:
        ValueError: the model does not give one logit a class.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, *dataset.train.images.shape[1:], device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model.eval()(image)
    if logits.shape != (1, len(dataset.classes)):
        raise ValueError(
            f"the model gives {tuple(logits.shape)} for one image, {dataset.name} needs"
            f" {(1, len(dataset.classes))}"
        )
    return counter.get_total_flops() // 2


def _run(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module,
    dataset: Dataset,
    folder: Path | None,
    macs: int,
) -> str:
    """Train in one process; the first one writes the results. Return the folder."""
    folder = Path(fabric.broadcast(str(folder)))
    if fabric.world_size > 1:
        model = deepcopy(model)  # spawned processes are given one memory for all of them
    with settings(fabric, recipe):
        run = Run(fabric, recipe, model, dataset, folder)
        run.train()
    if fabric.is_global_zero:
        checkpoint.save_run(folder, run.stored, _run_config(recipe, model, dataset))
        checkpoint.draw_curves(folder / "curves.png", run.history, folder.name)
        # The summary comes last: a run that has one is finished.
        summary = _summarise(run, macs)
        checkpoint.write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    del run
    disconnect(fabric)
    return str(folder)


def _run_config(recipe: Recipe, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    return {
        **_config(model),
        "classes": list(dataset.classes),
        "data": recipe.data,
        "image_size": list(dataset.train.images.shape[2:]),
        "mean": recipe.mean,
        "std": recipe.std,
    }


def _summarise(run: Run, macs: int) -> dict[str, Any]:
    rows, best = run.history, None
    if rows[0]["validation_top1"] is not None:
        best = max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    device = run.fabric.device
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "final_test_top1": rows[-1]["test_top1"],
        "best_validation_epoch": best and best["epoch"],
        "test_top1_at_best_validation": best and best["test_top1"],
        "best_test_top1": max(row["test_top1"] for row in rows),
        "best_test_top1_is": "the paper's way of reporting, chosen on the test images: no estimate",
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "macs": macs,
        "images_per_second": statistics.harmonic_mean(row["images_per_second"] for row in rows),
        "seed": run.recipe.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "spem", "lightning-fabric")},
        "seconds": sum(row["seconds"] for row in rows),
    }


def _read_result(folder: Path, model: nn.Module | None) -> Result:
    if model is None:
        model, _ = checkpoint.load_run(folder)
    else:
        checkpoint.load_weights(model, folder)
    return Result(folder, json.loads((folder / "summary.json").read_text()), model.eval())
