"""The learning-rate range test: the loss while the rate climbs, and the rate that it suggests."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_whole
from spem._extras import needs_extra
from spem._files import atomically, write_table
from spem._messages import printable
from spem.train.devices import create_fabric, settings
from spem.train.freezing import Freezing
from spem.train.loss import class_weights
from spem.train.mixing import Mixing
from spem.train.nonfinite import NotFiniteError
from spem.train.optimizer import create_optimizer
from spem.train.order import hash_seed, order_rows, split_batches, training_seed
from spem.train.recipe import Recipe
from spem.train.resolving import resolve
from spem.train.setup import Job, prepare
from spem.train.step import Step, create_step

with needs_extra("train"):
    from lightning_fabric import Fabric

# Of fastai's `lr_find`, as are the 100 steps, the smoothing and the end.
LOWEST, HIGHEST = 1e-7, 10.0
_SMOOTHING, _DIVERGED = 0.98, 4
_FEWEST = 10


class RateRange(NamedTuple):
    """The result of a range test.

    Attributes:
        rates: the learning rate of each step.
        losses: the loss of each step.
        smoothed: their moving average.
        suggestion: the rate that `valley` finds; None if the loss never falls.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None

    @property
    def is_flat(self) -> bool:
        """Whether the loss falls by less than it varies between the first fifth of the steps.

        Their rates are too low to matter; a suggestion is then hardly more than chance.
        """
        first = self.losses[: max(2, len(self.losses) // 5)]
        return len(first) < 2 or mean(first) - min(self.smoothed) < stdev(first)


def find_rate(recipe: Recipe, model: nn.Module | None = None, *, steps: int = 100) -> RateRange:
    """Train for some steps, in which the learning rate climbs from 1e-7 to 10, and watch the loss.

    The rate climbs by the same factor at each step; the test ends where the smoothed loss exceeds
    four times its smallest value. Nothing is written, and a given model stays as it is.

    Args:
        recipe: of the run whose rate is looked for; its schedule is left aside, and its factors of
            the rate hold.
        model: see `fit`.
        steps: from the lowest rate to the highest.

    Raises:
        ValueError, FileNotFoundError: see `fit`.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3;
        the range, the smoothing and the rule of the suggestion are those of fastai's `lr_find`.
    """
    check_whole("steps", steps, least=2 * _FEWEST)
    alone = {"devices": 1, "replicas": 1, "cuda_graph": False, "on_nonfinite": "stop", "ema": None}
    recipe = resolve(replace(recipe, **alone), model)
    fabric = create_fabric(recipe)
    fabric.launch()
    with settings(fabric, recipe):
        job = prepare(fabric, recipe, None if model is None else deepcopy(model))
        factor = (HIGHEST / LOWEST) ** (1 / (steps - 1))
        rates = [LOWEST * factor**step for step in range(steps)]
        losses, smoothed, average = [], [], 0.0
        for step, loss in enumerate(_climb(fabric, job, rates), start=1):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            losses.append(loss)
            smoothed.append(average / (1 - _SMOOTHING**step))
            if smoothed[-1] > _DIVERGED * min(smoothed):
                break
    rates = rates[: len(losses)]
    return RateRange(rates, losses, smoothed, _suggest(rates, smoothed, steps))


def _climb(fabric: Fabric, job: Job, rates: Sequence[float]) -> Iterator[float]:
    """Yield the loss of each step at its rate, up to the first that is not finite."""
    recipe, groups, take_step = job.recipe, *_start(fabric, job)
    factors = [group["lr"] / recipe.lr for group in groups]
    mix, seed = Mixing(recipe, len(job.dataset.classes)), training_seed(recipe)
    batches = split_batches(fabric, recipe, job.dataset)
    coming: Iterator[tuple[Tensor, Tensor]] = iter(())
    for number, rate in enumerate(rates):
        epoch, step = divmod(number, len(batches["train"]))
        if step == 0:
            order = order_rows(job.dataset.train, seed, epoch)
            coming = batches["train"].shuffled(order, seed=hash_seed(seed, epoch, 1))
        torch.manual_seed(hash_seed(seed, epoch, step, 0))
        for group, own in zip(groups, factors, strict=True):
            group["lr"] = rate * own
        pixels, targets = mix(*next(coming))
        try:
            parts = take_step(pixels, targets, len(targets))
        except NotFiniteError:
            return
        loss = torch.cat([part.losses for part in parts]).mean().item()
        if not math.isfinite(loss):
            return
        yield loss


def _start(fabric: Fabric, job: Job) -> tuple[list[dict[str, Any]], Step]:
    """Return the optimiser's groups and the training step of a run, as `Run` makes them."""
    recipe, model = job.recipe, job.model
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    freezing = Freezing(model, recipe)
    freezing.apply(epoch=0)
    optimizer = create_optimizer(model, recipe)
    weights = class_weights(recipe, job.dataset.train.labels, job.dataset.classes)
    take_step = create_step(fabric, recipe, model, optimizer, weights)
    take_step.network.train()
    freezing.apply(epoch=0)  # frozen norms are left in evaluation mode
    return optimizer.param_groups, take_step


def _suggest(rates: Sequence[float], smoothed: Sequence[float], steps: int) -> float | None:
    """Return the rate of the valley, looked for without the first steps and the last five."""
    kept = slice(steps // 10, -5)
    rates, smoothed = rates[kept], smoothed[kept]
    if len(rates) < _FEWEST or (place := valley(smoothed)) is None:
        return None
    return rates[place]


def valley(losses: Sequence[float]) -> int | None:
    """Return the place in the middle third of the longest falling subsequence of losses.

    It is fastai's rule `valley`.

    Returns:
        The index, or None if no loss is below an earlier one.
    """
    lengths, end = [1] * len(losses), 0
    for i, loss in enumerate(losses):
        lengths[i] = 1 + max((lengths[j] for j in range(i) if losses[j] > loss), default=0)
        if lengths[i] > lengths[end]:
            end = i
    if lengths[end] == 1:
        return None
    start = end - lengths[end]
    third = (end - start) / 3
    return max(0, start + int(third) + int(third / 2))


def write_range(path: Path, found: RateRange, title: str) -> None:
    """Draw loss over learning rate, and write both as a CSV file of the same name beside it.

    Args:
        path: the PNG file.
        found: the test.
        title: stands above the picture, as it is.
    """
    from matplotlib.figure import Figure

    rows = zip(found.rates, found.losses, found.smoothed, strict=True)
    names = ("learning_rate", "loss", "smoothed_loss")
    write_table(path.with_suffix(".csv"), [dict(zip(names, row, strict=True)) for row in rows])
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    figure.suptitle(printable(title), parse_math=False, wrap=True)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="C0", alpha=0.35, linewidth=1, label="of each step")
    axes.plot(found.rates, found.smoothed, color="C0", linewidth=2, label="smoothed")
    if found.suggestion is not None:
        label = f"suggestion (fastai's valley): {found.suggestion:.2g}"
        axes.axvline(found.suggestion, color="C1", linestyle="--", label=label)
    top = 1.1 * max(found.smoothed[0], *found.smoothed[: -max(1, len(found.smoothed) // 20)])
    low = min(*found.losses, *found.smoothed)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_ylim(low - 0.05 * (top - low), top)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")
