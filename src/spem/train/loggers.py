"""The finished epochs of a run in TensorBoard or Weights & Biases, beside its `metrics.csv`."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from spem._extras import needs_extra
from spem.train.identity import repeat_name
from spem.train.recipe import Recipe

with needs_extra("train"):
    from lightning_fabric.loggers.logger import Logger
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

_SECONDS = 5  # to wait for a server before a run is logged offline


def check_logger(recipe: Recipe) -> None:
    """Raise ImportError, which names the extra, unless the logger of a recipe is installed."""
    if recipe.logger != "csv":
        with needs_extra("log"):
            import_module(recipe.logger)


def open_log(recipe: Recipe, folder: Path, history: Sequence[dict[str, Any]]) -> Logger | None:
    """Return the logger of a run, which goes on with the log in the run's folder.

    Args:
        recipe: with `logger`.
        folder: of the run; the log is the folder `tensorboard` or `wandb` in it.
        history: the epochs that are finished; a log that begins later gets them first.

    Returns:
        The logger, or None for csv: `metrics.csv` is written in any case.
    """
    if recipe.logger == "csv":
        return None
    place = folder / recipe.logger
    new = not place.exists()
    if recipe.logger == "wandb":
        log: Logger = WandbLogger(recipe, folder)
    else:
        # A run that died while it saved trains its last epoch again: its points replace the old.
        again: dict[str, Any] = {} if new else {"purge_step": len(history) + 1}
        log = TensorBoardLogger(folder, name="", version=place.name, **again)
    for row in history if new else ():
        log_epoch(log, row)
    return log


def log_epoch(log: Logger, row: dict[str, Any]) -> None:
    """Log the row of a finished epoch under the names of `metrics.csv`, with epochs from 1."""
    values = {name: value for name, value in row.items() if value is not None and name != "epoch"}
    log.log_metrics(values, row["epoch"] + 1)
    log.save()  # so that one can follow it


class WandbLogger(Logger):
    """A run of Weights & Biases in the project `spem`, offline without a key or a network.

    A run whose folder has a log is continued under its id. `WANDB_MODE` and the other settings of
    wandb apply. What is kept offline is uploaded by `wandb sync`.

    Args:
        recipe: of the run, its configuration there.
        folder: of the run, in which wandb makes its folder `wandb`.

    Raises:
        ValueError: wandb cannot start, for example because its server refuses the key.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        import wandb

        # Named like offline-run-20261128_025313-ID.
        earlier = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name[-24:])
        gate = recipe.gate or "plain"
        repeat = repeat_name(recipe.seed, recipe.fold, recipe.folds)
        try:
            self._run = wandb.init(
                project="spem",
                name=f"{recipe.model} {gate} {Path(recipe.data).name} {repeat}",
                config=asdict(recipe),
                dir=folder,
                id=earlier[-1].name.rpartition("-")[2] if earlier else None,
                resume="allow",
                mode=_choose_mode(),
                reinit="create_new",  # replicas train several runs at once
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f"wandb does not start: {error}; with WANDB_MODE=offline it logs into {folder}"
            ) from error
        self._run.define_metric("*", step_metric="epoch")

    @property
    def name(self) -> str | None:
        """Name of the run."""
        return self._run.name

    @property
    def version(self) -> str:
        """Id of the run."""
        return self._run.id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values under their names; see `Logger`."""
        self._run.log(metrics | {"epoch": step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the configuration of the run; see `Logger`."""
        self._run.config.update(params)

    def finalize(self, status: str) -> None:
        """End the run; see `Logger`."""
        self._run.finish(exit_code=int(status != "success"))


def _choose_mode() -> Any:
    """Return what wandb is to do: None, which lets `WANDB_MODE` decide, or online or offline."""
    import wandb

    if "WANDB_MODE" in os.environ:
        return None
    if not wandb.login(prompt=False, verify=False):
        return "offline"
    try:
        urlopen(wandb.Settings().base_url, timeout=_SECONDS).close()
    except HTTPError:
        return "online"  # it answers
    except OSError:
        return "offline"
    return "online"
