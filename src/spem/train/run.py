"""A run in one process: its steps, its epochs, its state."""

import math
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from spem._extras import needs_extra
from spem._files import write_table
from spem.data.batches import EVALUATION_BATCH, Batches
from spem.data.dataset import Dataset
from spem.gates import mixing_ratios
from spem.train.checkpoint import load_checkpoint, save_checkpoint
from spem.train.metrics import create_metrics, evaluate, read
from spem.train.optimizer import create_average, create_optimizer, create_schedule
from spem.train.recipe import Recipe
from spem.train.step import Capture, capture_cuda, create_step

with needs_extra("train"):
    from lightning_fabric import Fabric
    from torchmetrics import MeanMetric

_POSITION = ("epoch", "step", "seconds", "history")


class Run:
    """One run in one process: what it is made of, where it stands, and how it goes on.

    Args:
        fabric: launched.
        recipe: everything that decides the run.
        model: the network, which is trained in place.
        dataset: its splits.
        folder: where the checkpoint and the table go; a checkpoint that lies there is continued.
        capture: what makes a graph of a step where the recipe has `cuda_graph`.

    Attributes:
        stored: the network that is evaluated and stored: `model`, or its average.
        history: one row of `metrics.csv` for each finished epoch.
        epoch, step: those that come next, counted from 0.
        seconds: training time of the running epoch.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        model: nn.Module,
        dataset: Dataset,
        folder: Path,
        capture: Capture = capture_cuda,
    ):
        self.fabric, self.recipe, self.model, self.folder = fabric, recipe, model, folder
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.batches = split_batches(fabric, recipe, dataset)
        self.images, self.steps = len(dataset.train.labels), len(self.batches["train"])
        optimizer = create_optimizer(model, recipe)
        self.schedule = create_schedule(optimizer, recipe, self.steps)
        made = create_step(fabric, recipe, model, optimizer, capture)
        self.network, self.optimizer, self._take_step = made
        self.average = create_average(model, recipe)
        self.stored = self.average.module if self.average else model
        self.metrics = create_metrics(len(dataset.classes), fabric.device)
        self.auxiliary = MeanMetric(nan_strategy="disable").to(fabric.device)
        self.auxiliary.persistent(True)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._restore()

    def work(self) -> Iterator[dict[str, Any] | None]:
        """Train up to the last epoch of the recipe, pausing after each step.

        Yields:
            The row of the epoch that the step has ended, or None.

        Raises:
            ValueError: the training loss of an epoch is not finite.
        """
        while self.epoch < self.recipe.epochs:
            for _ in self._train_epoch():
                if self.step < self.steps:
                    yield None
            yield self._end_epoch()

    def _train_epoch(self) -> Iterator[None]:
        """Train from the next step to the end of the epoch, pausing after each step."""
        seed, rank = self.recipe.seed, self.fabric.global_rank
        shuffle = torch.Generator().manual_seed(hash_seed(seed, self.epoch))
        order = torch.randperm(self.images, generator=shuffle)
        batches = self.batches["train"].shuffled(order, start=self.step)
        self.network.train()
        while self.step < self.steps:
            started = perf_counter()
            torch.manual_seed(hash_seed(seed, self.epoch, self.step, rank))
            self._train_step(*next(batches))
            self.step += 1
            self.seconds += perf_counter() - started
            yield

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimiser on this process's share of a batch."""
        batch = min(self.recipe.batch_size, self.images - self.step * self.recipe.batch_size)
        for part in self._take_step(images, labels, batch):
            self.metrics.update(value=part.losses, preds=part.logits, target=part.labels)
            self.auxiliary.update(part.auxiliary)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)

    def _end_epoch(self) -> dict[str, Any]:
        """Measure all splits, keep the epoch's row and save the state."""
        waiting = perf_counter()
        trained = read(self.metrics)
        auxiliary = self.auxiliary.compute().item()
        self._check_finite("training", trained["loss"] + auxiliary)
        started = perf_counter()
        self.seconds += started - waiting  # the device has caught up only now
        self._share_buffers()
        row = {"epoch": self.epoch, "auxiliary_loss": auxiliary}
        for split in ("train", "validation", "test"):
            values = trained if split == "train" else self._evaluate(split)
            self._check_finite(split, values["loss"] or 0.0)
            row |= {f"{split}_{name}": values[name] for name in ("loss", "top1", "top5")}
        row["learning_rate"] = self.learning_rate
        row["images_per_second"] = self.images / self.seconds
        row["seconds"] = self.seconds + perf_counter() - started
        row |= {f"mixing.{name}": ratio for name, ratio in mixing_ratios(self.stored).items()}
        self.history.append(row)
        self.metrics.reset()
        self.auxiliary.reset()
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.save()
        return row

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            kept = f"the state before it is kept in {self.folder}; "
            raise ValueError(
                f"the {what} loss of epoch {self.epoch} is not finite; "
                f"{kept if self.checkpoint.exists() else ''}a lower lr or a longer warm-up may help"
            )

    def _evaluate(self, split: str) -> dict[str, Any]:
        if split not in self.batches:
            return dict.fromkeys(("loss", "top1", "top5"))
        with self.fabric.autocast():
            return evaluate(self.stored, self.batches[split])

    def _share_buffers(self) -> None:
        """Give every process the running statistics of the first: each has seen other images."""
        if self.fabric.world_size > 1:
            for buffer in self.stored.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _parts(self) -> dict[str, Any]:
        """Return what has a state; the generators need none, for they follow from the position."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "precision": self.fabric.strategy.precision,
            "metrics": self.metrics,
            "auxiliary": self.auxiliary,
        }
        return parts | {"average": self.average} if self.average else parts

    def save(self) -> None:
        """Write the state of now as the checkpoint, and the table of the finished epochs."""
        if self.fabric.is_global_zero:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state |= {key: getattr(self, key) for key in _POSITION}
            save_checkpoint(self.checkpoint, state)
            if self.history:
                write_table(self.folder / "metrics.csv", self.history)

    def _restore(self) -> None:
        state, parts = load_checkpoint(self.checkpoint), self._parts()
        if not isinstance(state, dict) or not {*parts, *_POSITION} <= state.keys():
            raise ValueError(f"{self.checkpoint} is no checkpoint of a run with this recipe")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for key in _POSITION:
            setattr(self, key, state[key])


def hash_seed(seed: int, *position: int) -> int:
    """Return a seed of 64 bits for one purpose of a run.

    Args:
        seed: the run's.
        position: where in the run it is used; sequences that differ give unrelated seeds.
    """
    return int(np.random.SeedSequence(seed, spawn_key=position).generate_state(1, np.uint64)[0])


def check_batches(world_size: int, recipe: Recipe, dataset: Dataset) -> None:
    """Raise ValueError unless a recipe's batches can be made of a data set by all processes."""
    Batches(dataset.train, recipe.batch_size, mean=recipe.mean, std=recipe.std, crop=recipe.crop)
    last = len(dataset.train.labels) % recipe.batch_size or recipe.batch_size
    if last < world_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} leaves {last} images of {len(dataset.train.labels)}"
            f" for the last step, too few for {world_size} devices"
        )


def split_batches(fabric: Fabric, recipe: Recipe, dataset: Dataset) -> dict[str, Batches]:
    """Return this process's batches of the train, test and, if there is one, validation split."""
    shared: dict[str, Any] = {
        "mean": recipe.mean,
        "std": recipe.std,
        "device": fabric.device,
        "channels_last": recipe.channels_last,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
    }
    augmented = shared | {"crop": recipe.crop, "flip": recipe.flip}
    batches = {
        "train": Batches(dataset.train, recipe.batch_size, **augmented),
        "test": Batches(dataset.test, EVALUATION_BATCH, **shared),
    }
    if dataset.validation is not None:
        batches["validation"] = Batches(dataset.validation, EVALUATION_BATCH, **shared)
    return batches
