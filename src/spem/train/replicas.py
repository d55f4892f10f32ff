"""Several seeds of a recipe trained in turn on one device that a single network cannot fill."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spem._extras import needs_extra
from spem.train import folder as folders
from spem.train.devices import create_fabric, create_stream, join_stream, settings
from spem.train.failures import explained
from spem.train.interrupt import deferred_interrupt
from spem.train.progress import add_line, progress_bar
from spem.train.recipe import Recipe
from spem.train.results import write_results
from spem.train.run import Run
from spem.train.setup import Job, choose_kernels, prepare
from spem.train.summary import read_summary, write_summary

with needs_extra("train"):
    from lightning_fabric import Fabric

_OVER_SEEDS = (
    "final_test_top1",
    "best_validation_epoch",
    "test_top1_at_best_validation",
    "best_test_top1",
)
_OF_ALL = ("threads", "kernels", "best_test_top1_is", "parameters", "macs", "device", "versions")


# A run among others: all its CUDA work goes to its stream.
Replica = tuple[Run, torch.cuda.Stream | None]


class Replicas:
    """One run for each seed of a recipe, all checked before anything is written.

    Args:
        recipe: with `replicas`; each run has this recipe with its own seed and `replicas` 1.
        resumed: the common folder, if the runs are resumed; finished ones are not run again.
        cache: see `load_dataset`.

    Raises:
        ValueError, FileNotFoundError: see `prepare`; or a run in the folder has another recipe.
    """

    def __init__(self, recipe: Recipe, resumed: Path | None, cache: Path | None = None):
        seeds = range(recipe.seed, recipe.seed + recipe.replicas)
        self._all = [replace(recipe, seed=seed, replicas=1) for seed in seeds]
        self._left: list[tuple[Fabric, Recipe, Job, Path | None]] = []
        for own in self._all:
            folder = None if resumed is None else folders.replica_folder(resumed, own.seed)
            if folder and not (folder / "recipe.yaml").is_file():
                folder = None
            elif folder:
                folders.refuse_folder(folder, own, resume=True, overwrite=False)
            if folder is None or not folders.is_finished(folder, own):
                # Each has its own Fabric: the loss scaling of 16-mixed is part of a run's state.
                fabric = create_fabric(own)
                self._left.append(
                    (fabric, own, prepare(fabric, own, resumed=folder, cache=cache), folder)
                )

    @property
    def jobs(self) -> list[Job]:
        """Those that are not finished."""
        return [job for _, _, job, _ in self._left]

    def train(self, folder: Path) -> None:
        """Train those that are not finished, and write the summary of all.

        Args:
            folder: the common folder.

        Raises:
            ValueError: the loss of an epoch of one of them is not finite; the others are trained to
                their end.
            KeyboardInterrupt: Ctrl-C; the states of all are saved.
        """
        if self._left:
            fabric, _, job, _ = self._left[0]
            kernels = choose_kernels(fabric, self.jobs)
            with explained(job.recipe, folder), settings(fabric, job.recipe), kernels:
                _train_in_turn([_start(folder, *each) for each in self._left])
        places = [folders.replica_folder(folder, own.seed) for own in self._all]
        write_summary(folder, _summarise(list(map(read_summary, places))))


def _start(folder: Path, fabric: Fabric, recipe: Recipe, job: Job, resumed: Path | None) -> Replica:
    fabric.launch()
    recipe = replace(recipe, mean=job.recipe.mean, std=job.recipe.std)
    own = resumed or folders.new_folder(folders.replica_folder(folder, recipe.seed), recipe)
    folders.extend(own, recipe)
    stream = create_stream(fabric.device)
    with torch.cuda.stream(stream):
        return Run(fabric, job, own), stream


def _train_in_turn(replicas: Sequence[Replica]) -> None:
    """Train runs, one step of each after the other, and write the results of those that finish."""
    try:
        for run, stream in replicas:
            if run.finished:
                with torch.cuda.stream(stream):
                    _finish(run)
        errors = _take_steps_in_turn(replicas)
    finally:
        for run, stream in replicas:
            run.close()
            join_stream(stream)
    if errors:
        raise ValueError("; ".join(errors))


def _finish(run: Run) -> None:
    """Write the results of a run whose last state is saved."""
    run.close()
    write_results(run)


def _take_steps_in_turn(replicas: Sequence[Replica]) -> list[str]:
    """Return the errors of the runs whose loss is not finite; they are left out from then on."""
    errors = []
    # One that was killed after its last checkpoint lacks its results alone.
    left = {run: stream for run, stream in replicas if not run.finished}
    recipe = replicas[0][0].recipe
    with deferred_interrupt(True) as interrupted, progress_bar(recipe.progress) as bar:
        advance = {run: add_line(bar, run, f"seed {run.recipe.seed}, ") for run in left}
        while left and not interrupted.is_set():
            for run, stream in list(left.items()):
                try:
                    with torch.cuda.stream(stream):
                        advance[run](run.take_step())
                        run.save_if_due()
                        if run.finished:
                            _finish(run)
                            del left[run]
                except ValueError as error:
                    errors.append(f"seed {run.recipe.seed}: {error}")
                    del left[run]
        for run, stream in left.items():
            with torch.cuda.stream(stream):
                run.save_within_epoch()
    if left:
        raise interrupted.error()
    return errors


def _summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{key: _spread([run[key] for run in runs]) for key in _OVER_SEEDS},
        **{key: runs[0][key] for key in _OF_ALL},
        # Of all together: they share the time, and have the same number of images.
        "images_per_second": statistics.harmonic_mean(run["images_per_second"] for run in runs),
        "seconds": sum(run["seconds"] for run in runs),
        "seed": [run["seed"] for run in runs],
    }


def _spread(values: list[float | None]) -> dict[str, Any] | None:
    """Return mean, sample standard deviation and number; None where the runs have no value."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return None
    return {
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers),
        "n": len(numbers),
        "values": numbers,
    }
