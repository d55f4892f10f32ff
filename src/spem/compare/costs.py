"""What the networks of a comparison cost: measured one at a time, in turns, after the runs."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

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
from spem.train.devices import count_threads, create_fabric, settings
from spem.train.optimizer import create_optimizer
from spem.train.recipe import Recipe
from spem.train.setup import build, load_data
from spem.train.step import create_step

with needs_extra("train"):
    from lightning_fabric import Fabric

ROUNDS = 20
_LABELS = ("model", "data", "gate", "overrides")
_OF_DATA = ("data", "data_dir", "image_size", "validation", "seed")


def load_in_turn(recipes: Iterable[Recipe]) -> Iterator[Dataset]:
    """Yield the data set of each recipe; equal ones in a row are loaded once.

    Raises:
        ValueError: a recipe and its data do not fit.
        FileNotFoundError: the data is not there.
    """
    last, dataset = None, None
    for recipe in recipes:
        wanted = [getattr(recipe, key) for key in _OF_DATA]
        if dataset is None or wanted != last:
            last, dataset = wanted, load_data(recipe)
        yield dataset


def measure_costs(records: Sequence[Record], recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Measure training and inference of the rows of one group, in turns.

    A training step is that of the run: forward, loss, backward, optimiser. Inference is that of
    `spem.deploy(model, fold_batchnorm=True)`, in batches of the same size. Both run on the kernels
    that served the runs, with the threads of the recipes, on one device; nothing else should
    compute meanwhile.

    Args:
        records: of a finished run of each row; the first is the one that ratios refer to.
        recipes: of the same runs.

    Returns:
        One object a row, as `costs.jsonl` keeps it: the labels; `train` and `inference` (images a
        second), `train_ratio` and `inference_ratio` (times over the first row's, paired by round),
        each median, low and high quartile; `memory`: bytes of a training step, or None.
    """
    compiled = records[0]["summary"]["kernels"] == "compiled"
    alone = {"devices": 1, "sync_batchnorm": False}
    recipes = [replace(r, threads=count_threads(r), **alone) for r in recipes]
    fabrics = [create_fabric(recipe) for recipe in recipes]
    device = fabrics[0].device
    works: dict[str, dict[str, Work]] = {"train": {}, "inference": {}}
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # a capture needs one
    used = kernels.use("compiled") if compiled else nullcontext()
    with settings(fabrics[0], recipes[0]), used, torch.cuda.stream(stream):
        datasets = load_in_turn(recipes)
        for index, (fabric, recipe) in enumerate(zip(fabrics, recipes, strict=True)):
            dataset = next(datasets)
            model = build(recipe, dataset)
            name, batch = str(index), _batch(dataset, recipe, device)
            works["inference"][name] = _inference(model, batch[0], recipe)
            works["train"][name] = _training(fabric, recipe, model, batch)
        seconds = {kind: interleave(own, ROUNDS, device) for kind, own in works.items()}
        memory = [
            step_memory(works["train"][str(index)], device)
            if device.type == "cuda"
            else measure_apart("spem.compare.costs", json.dumps([asdict(recipe), compiled]))
            for index, recipe in enumerate(recipes)
        ]
    return [
        {label: record[label] for label in _LABELS}
        | _speeds(seconds, str(index), recipe.batch_size)
        | {"memory": memory[index], "rounds": ROUNDS, "batch_size": recipe.batch_size}
        | {"threads": recipe.threads, "device": device_name(device)}
        | {"kernels": record["summary"]["kernels"], "torch": torch.__version__, "spem": __version__}
        for index, (record, recipe) in enumerate(zip(records, recipes, strict=True))
    ]


def _batch(dataset: Dataset, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    statistics: Any = {"mean": recipe.mean, "std": recipe.std}
    batches = Batches(
        dataset.train,
        recipe.batch_size,
        device=device,
        channels_last=recipe.channels_last,
        **statistics,
    )
    return next(batches.in_order())


def _training(
    fabric: Fabric, recipe: Recipe, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> Work:
    fabric.launch()
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    _, _, take = create_step(fabric, recipe, model, create_optimizer(model, recipe))
    model.train()
    return lambda: lambda: take(*batch, len(batch[1]))


def _inference(model: nn.Module, images: Tensor, recipe: Recipe) -> Work:
    deployed = deploy(model, fold_batchnorm=True, example=images[:1].cpu()).to(images.device)
    if recipe.channels_last:
        deployed.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def run() -> None:
        with torch.inference_mode():
            deployed(images)

    return lambda: run


def _speeds(seconds: dict[str, dict[str, list[float]]], name: str, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, own in seconds.items():
        times, ratio = quantiles(own[name]), ratios(own, name, "0")
        found[kind] = _spread(batch / times[50], batch / times[75], batch / times[25])
        found[f"{kind}_ratio"] = _spread(ratio[50], ratio[25], ratio[75])
    return found


def _spread(*values: float) -> dict[str, float]:
    rounded = (float(f"{value:.6g}") for value in values)
    return dict(zip(("median", "low", "high"), rounded, strict=True))


def _main(given: str) -> None:
    values, compiled = json.loads(given)
    recipe = replace(Recipe(**values), device="cpu")
    fabric = create_fabric(recipe)
    with settings(fabric, recipe), kernels.use("compiled") if compiled else nullcontext():
        dataset = load_data(recipe)
        model = build(recipe, dataset)
        work = _training(fabric, recipe, model, _batch(dataset, recipe, fabric.device))
        sys.stdout.write(json.dumps(step_memory(work, fabric.device)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
