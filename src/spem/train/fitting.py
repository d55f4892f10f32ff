"""`fit`: trains what a recipe says and writes the folder of the run."""

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessException

from spem._checks import check_module, check_switch
from spem._extras import needs_extra
from spem._files import check_path
from spem._messages import say, shorten
from spem.data.cache import CACHE
from spem.export.network import load_network
from spem.export.weights import load_weights
from spem.train import folder as folders
from spem.train.devices import (
    create_fabric,
    create_stream,
    disconnect,
    join_stream,
    settings,
)
from spem.train.failures import describe_process, explained
from spem.train.identity import FOUND_KEYS
from spem.train.recipe import Recipe
from spem.train.replicas import Replicas
from spem.train.resolving import resolve
from spem.train.results import write_results
from spem.train.run import Run
from spem.train.setup import Job, announce, choose_kernels, describe, prepare
from spem.train.summary import read_summary

with needs_extra("train"):
    from lightning_fabric import Fabric

__all__ = ["Interrupted", "Result", "fit"]


class Result(NamedTuple):
    """A finished run: its folder, the content of `summary.json`, the model in eval mode.

    With replicas, the folder is the common one, the summary has means and deviations over the
    seeds, and the model is that of the first seed.
    """

    folder: Path
    summary: dict[str, Any]
    model: nn.Module

    def __repr__(self) -> str:
        """Return folder and accuracy in one line; the summary and the layers are long."""
        reached = self.summary["final_test_top1"]
        mean = reached["mean"] if isinstance(reached, dict) else reached
        top1 = "-" if mean is None else f"{mean:.4g}"
        return f"Result({str(self.folder)!r}, final_test_top1={top1}, {type(self.model).__name__})"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run in `folder`, where its state is saved.

    `exit_code` is what shells give the signal: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, folder: Path, exit_code: int = 130):
        super().__init__(f"interrupted; the state of the run is saved in {folder}")
        self.folder, self.exit_code = folder, exit_code


def fit(
    recipe: Recipe,
    model: nn.Module | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Train a network and write the folder of the run.

    On the CPU the same recipe, seed, threads and versions give the same weights, losses and
    accuracies, bit for bit, whether or not the run was interrupted and resumed: the order of an
    epoch follows from the seed and the epoch, and the random numbers of a step (augmentation,
    dropout) from the seed, the epoch, the step and the process. The caller's random generators are
    not changed.

    Several devices are one process each. They are spawned, so a script needs its
    `if __name__ == "__main__"`; under torchrun its processes are used.

    Several `replicas` are runs of successive seeds in one process, which take their steps in turn.
    Each writes the folder `seed-S` in the common folder. Its results equal those of a separate run
    with this seed: bit for bit on the CPU; on CUDA, where each has its own stream, bit for bit
    under `torch.use_deterministic_algorithms(True)`, else up to rounding, as two runs of one seed
    there. The times are those of the shared device.

    Args:
        recipe: everything that decides the run.
        model: a classifier from images (N, C, H, W) to logits (N, classes), trained in place; None:
            the recipe's model and gate.
        out: the run's folder; None: `runs/MODEL-GATE-DATA-N` with the first free number N.
        resume: continue the run in `out` where it stopped. One that is finished is returned, unless
            the recipe has more epochs than it: with a step or constant schedule it goes on, and
            ends as a run of that many epochs would, bit for bit if both use the same backend. A
            cosine or onecycle schedule is refused, because the rates so far would have been others.
        overwrite: replace the run in `out`.

    Returns:
        The folder, the summary and the model with the stored weights, which are the averaged ones
        where the recipe has `ema`.

    Raises:
        ValueError: recipe, data, model and machine do not fit, a step is not finite, the device is
            out of memory or lost, or another run trains in `out`.
        OSError: a file cannot be written, or one of several processes died; the last saved state
            is kept.
        FileExistsError: `out` is in use.
        FileNotFoundError: the data, the weights or the run to resume are not there.
        Interrupted: Ctrl-C or SIGTERM. A single process has saved its state after the current step;
            of several, the state after the last epoch is saved.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is {shorten(recipe)}, must be a Recipe, as load_recipe returns it"
        )
    if model is not None:
        check_module(model)
    check_switch("resume", resume)
    check_switch("overwrite", overwrite)
    if resume and out is None:
        raise ValueError("resume needs the folder of a run as out")
    recipe = resolve(recipe, model)
    fabric = create_fabric(recipe)
    folder = None if out is None else check_path("out", out)
    if folder and fabric.is_global_zero:
        folders.refuse_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if folder and resume and folders.is_finished(folder, recipe):
        say(f"The run in {folder} is finished: nothing is left to train.")
        return _read_result(folder, recipe, model)
    resumed = folder if resume else None
    cache = (folders.RUNS if folder is None else folder.parent) / CACHE
    if recipe.replicas > 1:
        ready = Replicas(recipe, resumed, cache)
    else:
        ready = prepare(fabric, recipe, model, resumed, cache=cache)
        recipe = replace(recipe, **{key: getattr(ready.recipe, key) for key in FOUND_KEYS})
    folder = _train_locked(fabric, ready, folder, recipe, resume=resume, overwrite=overwrite)
    return _read_result(folder, recipe, model)


def _train_locked(
    fabric: Fabric,
    ready: Job | Replicas,
    folder: Path | None,
    recipe: Recipe,
    *,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Train what is ready in a folder that no other run may use meanwhile; return the folder."""
    with ExitStack() as held:
        if fabric.is_global_zero:
            _say(recipe, ready)
            folder = folder or folders.number_folder(recipe)
            held.enter_context(folders.locked(folder))
            _take_folder(folder, recipe, resume=resume, overwrite=overwrite)
        try:
            if isinstance(ready, Job):
                folder = Path(fabric.launch(partial(_train, job=ready, folder=folder)))
            else:
                ready.train(folder := folder or Path())
        except ProcessException as error:
            raise describe_process(error, folder or Path()) from error
        except KeyboardInterrupt as interrupt:
            code = getattr(interrupt, "exit_code", 130)
            raise Interrupted(folder or Path(), code) from None
    return folder


def _say(recipe: Recipe, ready: Job | Replicas) -> None:
    """Print what is trained on what, unless the recipe asks for silence."""
    jobs = [ready] if isinstance(ready, Job) else ready.jobs
    if recipe.progress:
        for job in jobs[:1]:
            announce(job.recipe, job.dataset)
            say(describe(job))


def _take_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make a folder ready for the run; it is locked by now, and may have changed before."""
    folders.refuse_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if not resume:
        folders.new_folder(folder, recipe)
    elif changed := folders.extend(folder, recipe):
        say(changed)


def _train(fabric: Fabric, job: Job, folder: Path | None) -> str:
    """Train in one process; the first one writes the results. Returns the folder."""
    folder = Path(fabric.broadcast(str(folder)))
    if fabric.world_size > 1:
        # Spawned processes share the memory of what they are given.
        job = job._replace(model=deepcopy(job.model))
    # CUDA cannot record a graph on its default stream.
    stream = create_stream(fabric.device) if job.recipe.cuda_graph else None
    with ExitStack() as used:
        used.enter_context(explained(job.recipe, folder))
        used.enter_context(settings(fabric, job.recipe))
        used.enter_context(choose_kernels(fabric, [job]))
        used.enter_context(torch.cuda.stream(stream))
        run = Run(fabric, job, folder)
        run.train()
        if fabric.is_global_zero:
            write_results(run)
    join_stream(stream)
    del run  # `disconnect` needs the wrapped network gone
    disconnect(fabric)
    return str(folder)


def _read_result(folder: Path, recipe: Recipe, model: nn.Module | None) -> Result:
    if model is None:
        own = folder if recipe.replicas == 1 else folders.replica_folder(folder, recipe.seed)
        model, _ = load_network(own)
    else:
        load_weights(model, folder)
    return Result(folder, read_summary(folder, recipe.replicas), model.eval())
