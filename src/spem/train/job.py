"""One run, from its recipe to the files of its folder."""

import json
import logging
import platform
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spem import kernels
from spem._extras import needs_extra
from spem._files import write_text
from spem.data.dataset import Dataset, load_dataset
from spem.export.network import load_weights, save_network
from spem.models import create_model
from spem.norm import GatedBatchNorm2d
from spem.surgery.config import config_of
from spem.train import checkpoint
from spem.train.devices import settings, synchronise
from spem.train.recipe import Recipe
from spem.train.run import Run, check_batches
from spem.train.step import check_draws
from spem.train.turns import Stream, on, train_in_turn

with needs_extra("train"):
    from lightning_fabric import Fabric
    from rich import get_console

_UNNAMED: dict[str, Any] = {
    "model": None,
    "block": None,
    "gate": None,
    "gate_options": {},
    "placement": None,
    "mask": None,
}


# Multiply-adds, forward and backward, from which a run on the CPU earns the half minute that making
# kernels may take: about two minutes of training on two cores.
_WORTH_KERNELS = 1e13


class Job(NamedTuple):
    """What a run is made of, checked: nothing of it is written or trained yet.

    Attributes:
        recipe: everything that decides the run.
        model: the network with its initial weights.
        dataset: its splits.
        macs: multiply-adds of one image.
    """

    recipe: Recipe
    model: nn.Module
    dataset: Dataset
    macs: int


def prepare(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module | None = None,
    folder: Path | None = None,
    resume: bool = False,
    dataset: Dataset | None = None,
) -> Job:
    """Load the data, build the network and check that they fit.

    Args:
        fabric: of the recipe.
        recipe: what follows from its data and model is written out.
        model: the network to train; None for the recipe's.
        folder: of the run to resume.
        resume: whether there is one.
        dataset: that of the recipe, if it is loaded already.

    Raises:
        ValueError: recipe, data, model and machine do not fit.
        FileNotFoundError: the data or the weights are not there.
    """
    dataset = load_data(recipe) if dataset is None else dataset
    check_batches(fabric.world_size, recipe, dataset)
    network = build(recipe, dataset) if model is None else model
    macs = _count_macs(network, dataset)
    if recipe.cuda_graph:
        check_draws(network, torch.zeros(2, *dataset.train.images.shape[1:]))
    continued = resume and folder is not None and (folder / "checkpoint.pt").exists()
    if resume and not continued and fabric.is_global_zero:
        get_console().print(f"{folder} holds no checkpoint yet: the run starts from its beginning.")
    if recipe.weights is not None and not continued:
        load_weights(network, recipe.weights)
    if recipe.sync_batchnorm and fabric.world_size > 1:
        network = synchronise(network, fabric.device)
    return Job(recipe, network, dataset, macs)


def train_jobs(fabrics: Sequence[Fabric], jobs: Sequence[Job], folders: Sequence[Path]) -> None:
    """Train runs in turn in one process, and write the results of those that reach their end.

    On CUDA each of several runs, and each that is captured, has a stream of its own.

    Args:
        fabrics: launched, one a run, for each keeps a state of its own.
        jobs: the runs.
        folders: of the runs, with their recipes.

    Raises:
        ValueError, KeyboardInterrupt: see `train_in_turn`.
    """
    with settings(fabrics[0], jobs[0].recipe), _kernels(fabrics[0], jobs):
        streams = [_own_stream(fabrics[0], job.recipe, len(jobs) > 1) for job in jobs]
        runs = []
        for fabric, job, folder, stream in zip(fabrics, jobs, folders, streams, strict=True):
            with on(stream):
                runs.append(Run(fabric, job.recipe, job.model, job.dataset, folder))
        try:
            train_in_turn(runs, streams)
        finally:
            for run, job, stream in zip(runs, jobs, streams, strict=True):
                if run.epoch >= job.recipe.epochs and run.fabric.is_global_zero:
                    with on(stream):
                        _write_results(run, job)
                if stream is not None:
                    torch.cuda.current_stream(run.fabric.device).wait_stream(stream)


def _kernels(fabric: Fabric, jobs: Sequence[Job]) -> AbstractContextManager[None]:
    """Return the context in which a long run on the CPU uses compiled kernels, if they can be made.

    What decides is the same at every start of a run on one machine.
    """
    norms = any(isinstance(m, GatedBatchNorm2d) for job in jobs for m in job.model.modules())
    if kernels.is_forced() or fabric.device.type != "cpu" or not norms or jobs[0].recipe.compile:
        return nullcontext()
    images = [len(job.dataset.train.images) * job.recipe.epochs for job in jobs]
    if sum(3 * job.macs * n for job, n in zip(jobs, images, strict=True)) < _WORTH_KERNELS:
        return nullcontext()
    if reason := kernels.why_not("compiled"):
        logging.getLogger("spem").warning("%s; falling back to eager PyTorch", reason)
        return nullcontext()
    return kernels.use("compiled")


def _own_stream(fabric: Fabric, recipe: Recipe, several: bool) -> Stream:
    if fabric.device.type != "cuda" or not (several or recipe.cuda_graph):
        return None
    stream = torch.cuda.Stream(fabric.device)
    stream.wait_stream(torch.cuda.current_stream(fabric.device))
    return stream


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


def build(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """Return the network of a recipe for a data set, with the initial weights of its seed."""
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
    # Compiled kernels would be traced under the counter, and count once more with symbolic sizes.
    with torch.no_grad(), kernels.use("eager"), FlopCounterMode(display=False) as counter:
        logits = model.eval()(image)
    if logits.shape != (1, len(dataset.classes)):
        raise ValueError(
            f"the model gives {tuple(logits.shape)} for one image, {dataset.name} needs"
            f" {(1, len(dataset.classes))}"
        )
    return counter.get_total_flops() // 2


def network_config(model: nn.Module) -> dict[str, Any]:
    """Return the `config` of a model of `create_model` as JSON, or its like for any other model."""
    config = config_of(model)
    return _UNNAMED if config is None else config.to_json()


def _write_results(run: Run, job: Job) -> None:
    folder = run.folder
    save_network(folder, run.stored, _run_config(job))
    checkpoint.draw_curves(folder / "curves.png", run.history, folder.name)
    # The summary comes last: a run that has one is finished.
    write_summary(folder, _summarise(run, job.macs))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, with which a folder counts as finished."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _run_config(job: Job) -> dict[str, Any]:
    recipe, dataset = job.recipe, job.dataset
    return {
        **network_config(job.model),
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
        "threads": run.recipe.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        # Which kernels served the maps: results of one implementation repeat bit for bit.
        "kernels": kernels.chosen(torch.empty(1, 1, 1, 1, device=device)).name,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "spem", "lightning-fabric")},
        "seconds": sum(row["seconds"] for row in rows),
    }
