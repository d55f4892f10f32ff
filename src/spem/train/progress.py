"""The progress bar of a training: one line for each run."""

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


class ProgressLine:
    """The line of one run: its epoch, its steps, and the results of the last finished epoch.

    Args:
        bar: where the line is added.
        run: a run that was created or restored, but has not gone on since.
        name: stands before the epoch.
    """

    def __init__(self, bar: Progress, run: "Run", name: str = ""):
        self._bar, self._run, self._name = bar, run, name
        done, total = run.epoch * run.steps + run.step, run.recipe.epochs * run.steps
        self._task = bar.add_task(self._describe(), completed=done, total=total, results="")

    def advance(self, row: dict[str, Any] | None) -> None:
        """Show that one more step was taken.

        Args:
            row: of the epoch that the step ended, or None within an epoch.
        """
        self._bar.advance(self._task)
        if row is not None:
            split = "test" if row["validation_top1"] is None else "validation"
            results = f"loss {row['train_loss']:.3f}, {split} {row[f'{split}_top1']:.2%}"
            self._bar.update(self._task, description=self._describe(), results=results)

    def _describe(self) -> str:
        epochs = self._run.recipe.epochs
        return f"{self._name}epoch {min(self._run.epoch + 1, epochs)}/{epochs}"
