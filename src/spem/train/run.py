"""The training loop of one run in one process, and its state."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from spem._extras import needs_extra
from spem._files import write_table
from spem.data.splits import sum_of_folder
from spem.gates import mixing_ratios
from spem.train.checkpoint import (
    check_form,
    check_optimizer,
    check_run,
    load_checkpoint,
    mark_run,
    save_checkpoint,
)
from spem.train.freezing import Freezing
from spem.train.interrupt import deferred_interrupt
from spem.train.loggers import log_epoch, open_log
from spem.train.loss import class_weights
from spem.train.metrics import create_metrics, evaluate, read
from spem.train.mixing import Mixing
from spem.train.nonfinite import MOST_IN_A_ROW, NotFiniteError
from spem.train.optimizer import create_average, create_optimizer, create_schedule
from spem.train.order import hash_seed, order_rows, split_batches, training_seed
from spem.train.progress import add_line, progress_bar
from spem.train.setup import Job
from spem.train.step import create_step
from spem.train.stopping import has_stopped

with needs_extra("train"):
    from lightning_fabric import Fabric
    from torchmetrics import MeanMetric

_POSITION = ("epoch", "step", "seconds", "history")


class Run:
    """One training run in one process: network, optimiser, batches, metrics, and its position.

    Args:
        fabric: launched.
        job: what is trained; its network in place.
        folder: for the checkpoint and `metrics.csv`; a checkpoint that is there is continued.

    Attributes:
        stored: the network that is evaluated and stored: `model`, or its moving average.
        images_sum: see `sum_of_folder`.
        history: one row of `metrics.csv` for each finished epoch.
        epoch, step: the next ones, counted from 0.
        seconds: training time of the running epoch.
        skipped, skipped_in_row: steps of this epoch that were left out because they were not
            finite, and those at its end or before it without a step between.
    """

    def __init__(self, fabric: Fabric, job: Job, folder: Path):
        self.fabric, self.job, self.folder = fabric, job, folder
        self.recipe, self.model = recipe, model = job.recipe, job.model
        dataset = job.dataset
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.batches = split_batches(fabric, recipe, dataset)
        self.images, self.steps = len(dataset.train.labels), len(self.batches["train"])
        self.images_sum = sum_of_folder(dataset)
        self._freezing = Freezing(model, recipe)
        self._freezing.apply(epoch=0)  # processes are connected by what is trained
        optimizer = create_optimizer(model, recipe)
        self.schedule = create_schedule(optimizer, recipe, self.steps)
        weights = class_weights(recipe, dataset.train.labels, dataset.classes)
        self._training_step = create_step(fabric, recipe, model, optimizer, weights)
        self.average = create_average(model, recipe)
        self.stored = self.average.module if self.average else model
        self._mix = Mixing(recipe, len(dataset.classes))
        self.metrics = create_metrics(len(dataset.classes), fabric.device)
        self.auxiliary = MeanMetric(nan_strategy="disable").to(fabric.device)
        self.auxiliary.persistent(True)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.skipped = self.skipped_in_row = 0
        self._position = _POSITION
        if recipe.on_nonfinite == "skip":
            self._position += ("skipped", "skipped_in_row")
        self.history: list[dict[str, Any]] = []
        self._coming: Iterator[tuple[Tensor, Tensor]] | None = None
        self._saved = monotonic()
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._restore()
        self._log = open_log(recipe, folder, self.history) if fabric.is_global_zero else None

    @property
    def finished(self) -> bool:
        """Whether all epochs of the recipe are over, or its patience is."""
        return self.epoch >= self.recipe.epochs or has_stopped(self.recipe, self.history)

    def train(self) -> None:
        """Train up to the last epoch of the recipe, or to the end of its patience.

        Raises:
            ValueError: a step or the loss of a split is not finite.
            KeyboardInterrupt: Ctrl-C or SIGTERM. A single process has saved its state after the
                step; each of several ends at once, so the run continues from the state of the last
                epoch.
        """
        visible = self.recipe.progress and self.fabric.is_global_zero
        single = self.fabric.world_size == 1
        bar = progress_bar(visible)
        with deferred_interrupt(single) as interrupted, bar, closing(self):
            advance = add_line(bar, self)
            while not self.finished and not interrupted.is_set():
                advance(self.take_step())
                if single:
                    self.save_if_due()
            if not self.finished:
                self.save_within_epoch()
                raise interrupted.error()

    def close(self) -> None:
        """End the log of the run; nothing can be trained afterwards."""
        self._freezing.lift()
        if self._log:
            self._log.finalize("success" if self.finished else "aborted")
            self._log = None

    def take_step(self) -> dict[str, Any] | None:
        """Take one step on this process's share of the next batch; the last one ends the epoch.

        Returns:
            The row of `metrics.csv` of the epoch that ended, or None within an epoch.

        Raises:
            ValueError: the step is not finite and may not be left out, or a loss of the epoch that
                ended is not.
        """
        if self._coming is None:
            self._coming = self._start_epoch()
        started = perf_counter()
        seed, rank = training_seed(self.recipe), self.fabric.global_rank
        torch.manual_seed(hash_seed(seed, self.epoch, self.step, rank))
        images, targets = self._mix(*next(self._coming))
        batch = min(self.recipe.batch_size, self.images - self.step * self.recipe.batch_size)
        self.learning_rate = max(self.schedule.get_last_lr())  # parts may have lower ones
        try:
            parts = self._training_step(images, targets, batch)
            self.skipped_in_row = 0
        except NotFiniteError as error:
            self._take_bad_step(error.where)
            parts = []
        for part in parts:
            self.metrics.update(value=part.losses, preds=part.logits, target=part.labels)
            self.auxiliary.update(part.auxiliary)
        self.schedule.step()
        if self.average and parts:
            self.average.update_parameters(self.model)
        self.step += 1
        self.seconds += perf_counter() - started
        return self._end_epoch() if self.step == self.steps else None

    def _take_bad_step(self, where: str) -> None:
        """Count a step that is not finite, or raise the error that ends the run."""
        self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
        what = f"step {self.step + 1} of epoch {self.epoch + 1}"
        if self.recipe.on_nonfinite == "skip":
            if self.skipped_in_row == MOST_IN_A_ROW:
                what = f"{MOST_IN_A_ROW} steps in a row, the last of them {what},"
            elif self.skipped == self.steps:
                what = f"every step of epoch {self.epoch + 1}"
            else:
                return
        raise ValueError(
            f"{what} is not finite, first {where}, at the learning rate {self.learning_rate:.3g};"
            f" {self._advise()}"
        )

    def _start_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of the epoch from the next step on."""
        seed = training_seed(self.recipe)
        order = order_rows(self.job.dataset.train, seed, self.epoch)
        self._training_step.network.train()
        self._freezing.apply(self.epoch)
        return self.batches["train"].shuffled(order, self.step, hash_seed(seed, self.epoch, 1))

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
        if self.recipe.on_nonfinite == "skip":
            row["skipped_steps"], self.skipped = self.skipped, 0
        self.history.append(row)
        if self._log:
            log_epoch(self._log, row)
        self.metrics.reset()
        self.auxiliary.reset()
        self.epoch, self.step, self.seconds, self._coming = self.epoch + 1, 0, 0.0, None
        self.save()
        return row

    def _check_finite(self, what: str, loss: float) -> None:
        if not math.isfinite(loss):
            place = f"epoch {self.epoch + 1}"
            raise ValueError(f"the {what} loss of {place} is not finite; {self._advise()}")

    def _advise(self) -> str:
        kept = self.checkpoint.exists() and f"the state before it is kept in {self.folder}; "
        return f"{kept or ''}a lower lr or a longer warm-up may help"

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
        """Return what a checkpoint stores; random generators follow from the position instead."""
        parts = {
            "model": self.model,
            "optimizer": self._training_step.optimizer,
            "schedule": self.schedule,
            "precision": self.fabric.strategy.precision,
            "metrics": self.metrics,
            "auxiliary": self.auxiliary,
        }
        return parts | {"average": self.average} if self.average else parts

    def save(self) -> None:
        """Write the checkpoint and the table of the finished epochs."""
        if self.fabric.is_global_zero:
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state |= {key: getattr(self, key) for key in self._position}
            state["run"] = mark_run(self.recipe, self.images_sum)
            save_checkpoint(self.checkpoint, state)
            self.write_metrics()
        self._saved = monotonic()

    def write_metrics(self) -> None:
        """Write the table of the finished epochs, if there are any."""
        if self.history:
            write_table(self.folder / "metrics.csv", self.history)

    def save_if_due(self) -> None:
        """Write the checkpoint if the last one is older than the recipe's `checkpoint_minutes`."""
        minutes = self.recipe.checkpoint_minutes
        if minutes is not None and monotonic() - self._saved > 60 * minutes:
            self.save_within_epoch()

    def save_within_epoch(self) -> None:
        """Write the checkpoint unless the epoch has just begun: the last one's end is saved."""
        if self.step:
            self.save()

    def _restore(self) -> None:
        state, parts = load_checkpoint(self.checkpoint), self._parts()
        check_run(self.checkpoint, state, self.recipe, self.steps, self.images_sum)
        try:
            check_optimizer(state["optimizer"], self._training_step.optimizer)
            for name, part in parts.items():
                check_form(name, state[name], part.state_dict())
                part.load_state_dict(state[name])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.checkpoint} does not fit its recipe: {reason}") from error
        for key in self._position:
            setattr(self, key, state[key])
