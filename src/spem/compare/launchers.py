"""Where the runs of a comparison train: in this process, in others of this machine, or on Ray."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._messages import describe_error
from spem.train.devices import count_threads, keep_freed_memory
from spem.train.fitting import fit
from spem.train.interrupt import deferred_interrupt
from spem.train.recipe import Recipe

with needs_extra("train"):
    from filelock import FileLock

Runs = Sequence[tuple[Recipe, Path]]
# Called with the folder of a run that ended, and with the reason if it failed.
OnEnd = Callable[[Path, str | None], None]
# Called about twice a second with the folders of the runs that are training.
OnProgress = Callable[[list[Path]], None]
_POLL = 0.5  # seconds
_INTERRUPTED = "somebody interrupted its process; its state is saved"


def run_one(recipe: Recipe, folder: Path) -> str | None:
    """Train one run to its end, from where it stopped if it was begun.

    A second process that is given the same folder waits for the first.

    Args:
        recipe: of the run.
        folder: of the run.

    Returns:
        Why the run failed, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        return _train(recipe, folder)


def _train(recipe: Recipe, folder: Path) -> str | None:
    """Do what `run_one` does without its lock; what `fit` prints goes to `FOLDER.log`."""
    log = folder.with_name(f"{folder.name}.log")
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            fit(recipe, out=folder, resume=(folder / "recipe.yaml").exists())
        except (ValueError, OSError) as error:
            return describe_error(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {' '.join(str(error).split())} (see {log.name})"
    return None


def run_here(runs: Runs, on_end: OnEnd, on_progress: OnProgress) -> None:
    """Train runs one after the other in this process.

    Under torchrun all processes call this, and each run is shared among them.

    Args:
        runs: recipe and folder of each.
        on_end: called after each run.
        on_progress: called before each run.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    keep_freed_memory()
    for recipe, folder in runs:
        folder.parent.mkdir(parents=True, exist_ok=True)
        on_progress([folder])
        on_end(folder, _train(recipe, folder))


def run_local(runs: Runs, on_end: OnEnd, on_progress: OnProgress, jobs: int = 1) -> None:
    """Train runs in worker processes of this machine, which end with this one.

    Args:
        runs: recipe and folder of each.
        on_end: called after each run.
        on_progress: called while runs are training.
        jobs: processes at once; each gets its share of the cores, for threads of two processes on
            the same core wait for each other.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs that were training have saved their states. A second
            Ctrl-C ends them at once, and the states of their last epochs are kept.
        ChildProcessError: a process died.
    """
    share = max(1, _count_cores() // jobs)
    context = multiprocessing.get_context("spawn")
    left = iter([(replace(r, threads=min(count_threads(r), share)), folder) for r, folder in runs])
    running: dict[Future[str | None], Path] = {}
    with (
        ProcessPoolExecutor(jobs, context, initializer=_start_worker) as pool,
        _kill_workers_on_error(),
        deferred_interrupt(True) as interrupted,
    ):
        while True:
            while len(running) < jobs and (run := next(left, None)):
                running[pool.submit(_run_in_worker, *run)] = run[1]
            if not running:
                return
            on_progress(list(running.values()))
            _report_ended(running, on_end)
            if interrupted.is_set():
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGINT)
                while running:
                    _report_ended(running, on_end, stopping=True)
                raise interrupted.error()


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _kill_workers_on_error() -> Iterator[None]:
    """Kill the worker processes if the block raises; else the pool would wait for their runs."""
    try:
        yield
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()
        raise


def _report_ended(
    running: dict[Future[str | None], Path], on_end: OnEnd, stopping: bool = False
) -> None:
    """Wait a little, and report the runs that ended meanwhile, except those told to stop."""
    done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
    for future in done:
        folder = running.pop(future)
        try:
            error = future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"the process of the run in {folder} died, perhaps for want of memory; finished"
                " runs are kept, and the same command goes on"
            ) from None
        if not (stopping and error == _INTERRUPTED):
            on_end(folder, error)


def _start_worker() -> None:
    """Prepare a worker process: it ends when its parent does, and obeys its parent's Ctrl-C."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the parent alone, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(recipe: Recipe, folder: Path) -> str | None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run_one(recipe, folder)
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_ray(runs: Runs, on_end: OnEnd, on_progress: OnProgress, address: str | None = None) -> None:
    """Train runs as tasks of a Ray cluster, whose machines see the same folders and have `spem`.

    A task asks for its recipe's threads and, where the cluster has GPUs and the recipe does not
    refuse them, for its devices. One whose process dies is started again and resumes its run.

    Args:
        runs: recipe and folder of each.
        on_end: called after each run.
        on_progress: called while runs are training.
        address: of the cluster; None: the one that the environment names, else one on this machine.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no cluster at this address.
        KeyboardInterrupt: Ctrl-C; the runs that were training have saved their states.
    """
    with needs_extra("cluster"):
        import ray
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        running = _submit_tasks(ray, runs)
        with deferred_interrupt(True) as interrupted:
            while running and not interrupted.is_set():
                on_progress([each for each in running.values() if (each / "recipe.yaml").exists()])
                done, _ = ray.wait(list(running), timeout=_POLL)
                for task in done:
                    on_end(running.pop(task), _get_error(ray, task))
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=60)
            raise interrupted.error()
    finally:
        if started:
            ray.shutdown()


def _submit_tasks(ray: Any, runs: Runs) -> dict[Any, Path]:
    """Start a task for each run, and return their folders by task."""
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    tasks = {}
    for recipe, folder in runs:
        gpus = recipe.devices if has_gpus and recipe.device in ("auto", "cuda") else 0
        task = ray.remote(num_cpus=count_threads(recipe), num_gpus=gpus, max_retries=3)(run_one)
        tasks[task.remote(recipe, folder.absolute())] = folder
    return tasks


def _get_error(ray: Any, task: Any) -> str | None:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return f"Ray: {' '.join(str(error).split())[:300]}"
