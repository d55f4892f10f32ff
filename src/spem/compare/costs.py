"""What networks cost beside each other: training and inference in turns, memory of a step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem import __version__, deploy, kernels
from spem._extras import needs_extra
from spem.compare.records import Record
from spem.compare.timing import (
    Work,
    device_name,
    interleave,
    measure_apart,
    quantiles,
    ratios,
    step_memory,
)
from spem.data.batches import Batches
from spem.data.dataset import Dataset
from spem.train.devices import create_fabric, settings
from spem.train.job import build, load_data
from spem.train.optimizer import create_optimizer
from spem.train.recipe import Recipe
from spem.train.step import create_step
from spem.train.turns import on

with needs_extra("train"):
    from lightning_fabric import Fabric

ROUNDS = 20
_LABELS = ("model", "data", "gate", "overrides")
_KEYS_OF_DATA = ("data", "data_dir", "image_size", "validation", "seed")


class NetworkWork(NamedTuple):
    """What is timed of a network: a training step, and inference of its deployed form.

    Attributes:
        train, inference: the work.
        images: of the batch that both take.
    """

    train: Work
    inference: Work
    images: int


def make_work(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    fold_batchnorm: bool = True,
) -> NetworkWork:
    """Return the work of a network on one batch, whose values do not change what it costs.

    Args:
        fabric: of the recipe, for this network alone.
        recipe: what a training step is, and the memory format.
        model: the network, on the CPU; it is trained by the work.
        batch: images (N, C, H, W) and labels (N,), on the device of the fabric.
        fold_batchnorm: see `spem.deploy`.
    """
    images = batch[0]
    deployed = deploy(model, fold_batchnorm=fold_batchnorm, example=images[:1].cpu())
    deployed = deployed.to(images.device)
    for network in (deployed, model) if recipe.channels_last else ():
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def infer() -> None:
        with torch.inference_mode():
            deployed(images)

    fabric.launch()
    _, _, take_step = create_step(fabric, recipe, model, create_optimizer(model, recipe))
    model.train()
    size = len(images)
    return NetworkWork(lambda: lambda: take_step(*batch, size), lambda: infer, size)


def measure_speeds(
    works: Sequence[NetworkWork], rounds: int, device: torch.device
) -> list[dict[str, dict[str, float]]]:
    """Measure training and inference of several networks in turns.

    Returns:
        Of each network `train` and `inference` in images per second, `train_ratio` and
        `inference_ratio`: its time over that of the first network, paired by round. Each is a
        mapping of `median` and the quartiles `low` and `high`.
    """
    speeds: list[dict[str, dict[str, float]]] = [{} for _ in works]
    for kind in ("train", "inference"):
        named = {str(index): getattr(work, kind) for index, work in enumerate(works)}
        seconds = interleave(named, rounds, device)
        for name, work, own in zip(named, works, speeds, strict=True):
            times, ratio = quantiles(seconds[name]), ratios(seconds, name, "0")
            own[kind] = _spread(*(work.images / times[percent] for percent in (50, 75, 25)))
            own[f"{kind}_ratio"] = _spread(*(ratio[percent] for percent in (50, 25, 75)))
    return speeds


def _spread(*values: float) -> dict[str, float]:
    rounded = (float(f"{value:.6g}") for value in values)
    return dict(zip(("median", "low", "high"), rounded, strict=True))


def describe_conditions(
    device: torch.device, batch_size: int, rounds: int, backend: str
) -> dict[str, Any]:
    """Return under which conditions costs were measured; call it where the threads are set."""
    return {
        "rounds": rounds,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "kernels": backend,
        "torch": torch.__version__,
        "spem": __version__,
    }


def load_in_turn(recipes: Iterable[Recipe]) -> Iterator[Dataset]:
    """Yield the data set of each recipe; equal ones in a row are loaded once.

    Raises:
        ValueError: a recipe and its data do not fit.
        FileNotFoundError: the data is not there.
    """
    last, dataset = None, None
    for recipe in recipes:
        wanted = [getattr(recipe, key) for key in _KEYS_OF_DATA]
        if dataset is None or wanted != last:
            last, dataset = wanted, load_data(recipe)
        yield dataset


def measure_costs(records: Sequence[Record], recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Measure training and inference of the rows of one group, in turns.

    A training step is that of the run: forward, loss, backward, optimiser. Inference is that of
    `spem.deploy(model, fold_batchnorm=True)`, in batches of the same size. Both use the backend
    that served the runs, with the threads of the recipes, on one device; nothing else should
    compute meanwhile.

    Args:
        records: of a finished run of each row; the first is the one that ratios refer to.
        recipes: of the same runs.

    Returns:
        One object a row, as `costs.jsonl` keeps it: the labels, what `measure_speeds` returns,
        `memory`: peak bytes of a training step, or None; and the conditions.
    """
    backend = records[0]["summary"]["kernels"]
    recipes = [replace(recipe, devices=1, sync_batchnorm=False) for recipe in recipes]
    fabrics = [create_fabric(recipe) for recipe in recipes]
    device, works = fabrics[0].device, []
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # a capture needs one
    used = kernels.use("compiled") if backend == "compiled" else nullcontext()
    with settings(fabrics[0], recipes[0]), used, on(stream):
        datasets = load_in_turn(recipes)
        for fabric, recipe in zip(fabrics, recipes, strict=True):
            dataset = next(datasets)
            batch = _first_batch(dataset, recipe, device)
            works.append(make_work(fabric, recipe, build(recipe, dataset), batch))
        speeds = measure_speeds(works, ROUNDS, device)
        memory = [
            step_memory(work.train, device)
            if device.type == "cuda"
            else measure_apart(_measure_step_memory, recipe, backend)
            for work, recipe in zip(works, recipes, strict=True)
        ]
        return [
            {label: record[label] for label in _LABELS}
            | own
            | {"memory": needed}
            | describe_conditions(device, recipe.batch_size, ROUNDS, record["summary"]["kernels"])
            for record, recipe, own, needed in zip(records, recipes, speeds, memory, strict=True)
        ]


def _first_batch(dataset: Dataset, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    statistics: Any = {"mean": recipe.mean, "std": recipe.std}
    batches = Batches(
        dataset.train,
        recipe.batch_size,
        device=device,
        channels_last=recipe.channels_last,
        **statistics,
    )
    return next(batches.in_order())


def _measure_step_memory(recipe: Recipe, backend: str) -> int | None:
    recipe = replace(recipe, device="cpu")
    fabric = create_fabric(recipe)
    used = kernels.use("compiled") if backend == "compiled" else nullcontext()
    with settings(fabric, recipe), used:
        dataset = load_data(recipe)
        batch = _first_batch(dataset, recipe, fabric.device)
        work = make_work(fabric, recipe, build(recipe, dataset), batch)
        return step_memory(work.train, fabric.device)
