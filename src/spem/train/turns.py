"""Runs that train in turn in one process, to their end or to Ctrl-C."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from spem._extras import needs_extra
from spem.train.run import Run

with needs_extra("train"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

Stream = torch.cuda.Stream | None


def train_in_turn(runs: Sequence[Run], streams: Sequence[Stream] = (None,)) -> None:
    """Train runs up to the last epochs of their recipes, one step of each after the other.

    A run whose loss is not finite is left out from then on, and the others are trained to their
    end.

    Args:
        runs: at least one; several are of one process.
        streams: of each run, on which it was made; None for the current one.

    Raises:
        ValueError: the training loss of an epoch of one of them was not finite.
        KeyboardInterrupt: Ctrl-C. A single process has saved the state of all after their steps;
            each of several ends at once, so that the last epoch's state is the one to continue.
    """
    left, errors = [_Turn(run, stream) for run, stream in zip(runs, streams, strict=True)], []
    single = runs[0].fabric.world_size == 1
    with deferred_interrupt(single) as interrupted, progress_bar(runs[0]) as bar:
        for turn in left:
            turn.show(bar, named=len(runs) > 1)
        while left and not interrupted.is_set():
            for turn in list(left):
                try:
                    ended = turn.take_step(bar)
                except ValueError as error:
                    errors.append((turn.run.recipe.seed, error))
                    ended = True
                if ended:
                    left.remove(turn)
        for turn in left:
            turn.save()
        if left:
            raise KeyboardInterrupt
    if errors and len(runs) > 1:
        raise ValueError("; ".join(f"seed {seed}: {error}" for seed, error in errors))
    if errors:
        raise errors[0][1]


class _Turn:
    """A run, its steps on its stream, and its line of the progress bar."""

    def __init__(self, run: Run, stream: Stream):
        self.run, self.stream = run, stream
        self._steps = run.work()
        self._task = TaskID(0)
        self._name = ""

    def show(self, bar: Progress, named: bool) -> None:
        run = self.run
        self._name = f"seed {run.recipe.seed}, " if named else ""
        done, total = run.epoch * run.steps + run.step, run.recipe.epochs * run.steps
        self._task = bar.add_task("", completed=done, total=total, news="")

    def take_step(self, bar: Progress) -> bool:
        """Take the next step and return whether it was the last."""
        run = self.run
        epoch = f"epoch {run.epoch + 1}/{run.recipe.epochs}"
        bar.update(self._task, description=f"{self._name}{epoch}")
        with on(self.stream):
            row = next(self._steps, None)
        bar.advance(self._task)
        if row is not None:
            shown = "test" if row["validation_top1"] is None else "validation"
            accuracy = f"{shown} {row[f'{shown}_top1']:.2%}"
            bar.update(self._task, news=f"loss {row['train_loss']:.3f}, {accuracy}")
        return run.epoch >= run.recipe.epochs

    def save(self) -> None:
        """Save the state within an epoch; that of a finished one is saved."""
        if self.run.step:
            with on(self.stream):
                self.run.save()


def on(stream: Stream) -> AbstractContextManager[object]:
    """Return the context in which CUDA work goes to a stream; None leaves it where it goes."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def progress_bar(run: Run) -> Progress:
    """Return the bar of runs like this one, hidden where its recipe hides it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        refresh_per_second=4,  # drawing takes the interpreter from the loop
        disable=not (run.recipe.progress and run.fabric.is_global_zero),
    )


@contextmanager
def deferred_interrupt(active: bool) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets instead of raising; a second one raises.

    Args:
        active: whether to do so; never outside the main thread, which alone gets signals.
    """
    event = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
