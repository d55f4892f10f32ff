"""Runs of several seeds at once on one device that a single network cannot fill."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from spem.train import checkpoint
from spem.train.devices import create_fabric
from spem.train.job import prepare, train_jobs, write_summary
from spem.train.recipe import Recipe

_OVER_SEEDS = (
    "final_test_top1",
    "best_validation_epoch",
    "test_top1_at_best_validation",
    "best_test_top1",
)
_OF_ALL = ("kernels", "best_test_top1_is", "parameters", "macs", "device", "versions")


class Replicas:
    """The runs of the seeds of a recipe, one each, checked before anything is written.

    Args:
        recipe: with `replicas`; each run has it with its own seed and `replicas` 1.
        resumed: the folder of them all, if they are resumed; those that are finished stay.

    Raises:
        ValueError, FileNotFoundError: see `prepare`; or a run in the folder has another recipe.
    """

    def __init__(self, recipe: Recipe, resumed: Path | None):
        self._all = [replace(recipe, seed=seed, replicas=1) for seed in seeds(recipe)]
        self._left = []
        for own in self._all:
            folder = None if resumed is None else replica_folder(resumed, own.seed)
            begun = folder is not None and (folder / "recipe.yaml").is_file()
            if begun and folder:
                checkpoint.refuse_folder(folder, own, resume=True, overwrite=False)
            if folder is None or not (folder / "summary.json").exists():
                # Each has its own Fabric: the loss scaling of 16-mixed is a state of the run.
                fabric = create_fabric(own)
                self._left.append((fabric, prepare(fabric, own, None, folder, begun), begun))

    def train(self, folder: Path) -> None:
        """Train those that are not finished, and write the summary of all.

        Args:
            folder: of them all.

        Raises:
            ValueError, KeyboardInterrupt: see `train_in_turn`.
        """
        folders = []
        for fabric, job, begun in self._left:
            fabric.launch()
            own = replica_folder(folder, job.recipe.seed)
            folders.append(own if begun else checkpoint.new_folder(own, job.recipe))
        if self._left:
            fabrics, jobs, _ = zip(*self._left, strict=True)
            train_jobs(fabrics, jobs, folders)
        paths = [replica_folder(folder, own.seed) / "summary.json" for own in self._all]
        write_summary(folder, _summarise([json.loads(path.read_text()) for path in paths]))


def seeds(recipe: Recipe) -> range:
    """Return the seeds of a recipe's replicas."""
    return range(recipe.seed, recipe.seed + recipe.replicas)


def replica_folder(folder: Path, seed: int) -> Path:
    """Return the folder of the run of one seed."""
    return folder / f"seed-{seed}"


def _summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **{key: _spread([run[key] for run in runs]) for key in _OVER_SEEDS},
        **{key: runs[0][key] for key in _OF_ALL},
        # Of all together: they share the time, and have equally many images.
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
