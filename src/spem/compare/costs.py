"""What networks cost beside each other: training and inference in turns, memory of a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem import __version__, deploy, kernels
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
from spem.train.devices import count_threads, create_fabric, create_stream, settings
from spem.train.optimizer import create_optimizer
from spem.train.recipe import Recipe
from spem.train.setup import build, load_data
from spem.train.step import create_step

ROUNDS = 20
_LABELS = ("model", "data", "gate", "overrides")


class NetworkWork(NamedTuple):
    """What is timed of a network: a training step, and inference of its deployed form.

    Attributes:
        train, inference: the work.
        images: how many are in the batch that both take.
    """

    train: Work
    inference: Work
    images: int


def make_work(
    recipe: Recipe, model: nn.Module, batch: tuple[Tensor, Tensor], fold_batchnorm: bool = True
) -> NetworkWork:
    """Return the work of a network on one batch, whose values do not change what it costs.

    Args:
        recipe: what a training step is, the device and the memory format.
        model: the network, on the CPU; it is trained by the work.
        batch: images (N, C, H, W) and labels (N,).
        fold_batchnorm: whether the deployed form has its norms folded, see `spem.deploy`.
    """
    fabric = create_fabric(recipe)
    fabric.launch()
    images, labels = (values.to(fabric.device) for values in batch)
    example = batch[0][:1].cpu()
    deployed = deploy(model, fold_batchnorm=fold_batchnorm, example=example).to(fabric.device)
    for network in (deployed, model) if recipe.channels_last else ():
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def infer() -> None:
        with torch.inference_mode():
            deployed(images)

    take_step = create_step(fabric, recipe, model, create_optimizer(model, recipe))
    model.train()
    count = len(labels)
    train: Work = lambda: lambda: take_step(images, labels, count)  # noqa: E731
    return NetworkWork(train, lambda: infer, count)


@contextmanager
def measuring(recipe: Recipe, backend: str) -> Iterator[torch.device]:
    """Set threads and backend for a measurement, and yield the device that the recipe asks for."""
    fabric = create_fabric(recipe)
    stream = create_stream(fabric.device)  # a capture needs one
    used = kernels.use("compiled") if backend == "compiled" else nullcontext()
    with settings(fabric, recipe), used, torch.cuda.stream(stream):
        yield fabric.device


def measure_networks(
    builds: Sequence[Callable[[], NetworkWork]], recipe: Recipe, backend: str, rounds: int
) -> list[dict[str, Any]]:
    """Measure training and inference of several networks in turns, and the memory of a step.

    Args:
        builds: build the work of each network, on the same device; they can be pickled.
        recipe: threads and device.
        backend: "compiled" where the compiled kernels for the CPU are to be used.
        rounds: in each, every network takes its turn.

    Returns:
        Of each network `train` and `inference` in images per second, `train_ratio` and
        `inference_ratio`: its time over that of the first network, paired by round. Each is a
        mapping of `median` and the quartiles `low` and `high`. `memory`: peak bytes of a training
        step, or None; and the conditions, `rounds`, `threads`, `device`, `torch`, `spem`.
    """
    with measuring(recipe, backend) as device:
        works = [build() for build in builds]
        costs: list[dict[str, Any]] = [{} for _ in works]
        for kind in ("train", "inference"):
            named = {str(index): getattr(work, kind) for index, work in enumerate(works)}
            seconds = interleave(named, rounds, device)
            for name, work, own in zip(named, works, costs, strict=True):
                times, ratio = quantiles(seconds[name]), ratios(seconds, name, "0")
                own[kind] = _spread(*(work.images / times[percent] for percent in (50, 75, 25)))
                own[f"{kind}_ratio"] = _spread(*(ratio[percent] for percent in (50, 25, 75)))
        for build, work, own in zip(builds, works, costs, strict=True):
            if device.type == "cuda":
                own["memory"] = step_memory(work.train, device)
            else:
                own["memory"] = measure_apart(_measure_step_memory, build, recipe, backend)
            own |= {"rounds": rounds, "threads": torch.get_num_threads()}
            own |= {"device": device_name(device), "torch": torch.__version__, "spem": __version__}
    return costs


def _spread(*values: float) -> dict[str, float]:
    rounded = (float(f"{value:.6g}") for value in values)
    return dict(zip(("median", "low", "high"), rounded, strict=True))


def _measure_step_memory(
    build: Callable[[], NetworkWork], recipe: Recipe, backend: str
) -> int | None:
    with measuring(recipe, backend) as device:
        return step_memory(build().train, device)


def measure_costs(
    records: Sequence[Record], recipes: Sequence[Recipe], cache: Path
) -> list[dict[str, Any]]:
    """Measure training and inference of the rows of one group, in turns.

    A training step is that of the run: forward, loss, backward, optimiser. Inference is that of
    `spem.deploy(model, fold_batchnorm=True)`, in batches of the same size. Both use the backend
    that served the runs, with the threads of the recipes, on one device; nothing else should
    compute meanwhile.

    Args:
        records: of a finished run of each row; the first is the one that ratios refer to.
        recipes: of the same runs.
        cache: see `load_dataset`.

    Returns:
        One object a row, as `costs.jsonl` keeps it: the labels, what `measure_networks` returns,
        `batch_size` and `kernels`.
    """
    alone = {"devices": 1, "sync_batchnorm": False}
    recipes = [replace(r, threads=count_threads(r), **alone) for r in recipes]
    builds = [partial(_make_run_work, recipe, cache) for recipe in recipes]
    backends = [record["summary"]["kernels"] for record in records]
    costs = measure_networks(builds, recipes[0], backends[0], ROUNDS)
    return [
        {label: record[label] for label in _LABELS}
        | own
        | {"batch_size": recipe.batch_size, "kernels": backend}
        for record, recipe, backend, own in zip(records, recipes, backends, costs, strict=True)
    ]


def _make_run_work(recipe: Recipe, cache: Path) -> NetworkWork:
    """Build the network of a run, and its work on the first batch of its data."""
    dataset = load_data(recipe, cache=cache)
    keys: Any = {key: getattr(recipe, key) for key in ("mean", "std", "channels_last")}
    batches = Batches(dataset.train, recipe.batch_size, **keys)
    return make_work(recipe, build(recipe, dataset), next(batches.in_order()))
