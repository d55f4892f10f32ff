"""The progress bar of a training: one line for each run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spem._extras import needs_extra

with needs_extra("train"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

if TYPE_CHECKING:
    from spem.train.run import Run


def progress_bar(visible: bool) -> Progress:
    """Return an empty progress bar, to be used as a context manager.

    Args:
        visible: whether anything is drawn.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[results]}"),
        refresh_per_second=4,  # drawing takes the interpreter from the training loop
        disable=not visible,
    )


def add_line(bar: Progress, run: "Run", name: str = "") -> Callable[[dict[str, Any] | None], None]:
    """Add the line of one run: its epoch, its steps, and the results of the last finished epoch.

    Args:
        bar: where the line is added.
        run: a run that was created or restored, but has not gone on since.
        name: stands before the epoch.

    Returns:
        The function that shows one more step. It takes the row of the epoch that the step ended, or
        None within an epoch.
    """
    epochs = run.recipe.epochs

    def describe() -> str:
        return f"{name}epoch {min(run.epoch + 1, epochs)}/{epochs}"

    def advance(row: dict[str, Any] | None) -> None:
        bar.advance(task)
        if row is not None:
            split = "test" if row["validation_top1"] is None else "validation"
            results = f"loss {row['train_loss']:.3f}, {split} {row[f'{split}_top1']:.2%}"
            bar.update(task, description=describe(), results=results)

    done, total = run.epoch * run.steps + run.step, epochs * run.steps
    task = bar.add_task(describe(), completed=done, total=total, results="")
    return advance
