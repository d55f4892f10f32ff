"""What a training shows while it runs: a bar in a terminal, and a line for each finished epoch."""

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from spem._extras import needs_extra
from spem._messages import say
from spem.train.summary import ABSURD_LOSS

with needs_extra("train"):
    from rich import get_console
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

    Only a terminal shows the bar, which is gone at the end; the lines of `add_line` stay.

    Args:
        visible: whether it is drawn.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        refresh_per_second=4,  # drawing takes the interpreter from the training loop
        disable=not (visible and get_console().is_terminal),
        transient=True,
    )


def add_line(bar: Progress, run: "Run", name: str = "") -> Callable[[dict[str, Any] | None], None]:
    """Add one run to a bar, and return the function that shows its steps and finished epochs.

    The epochs are printed by the process that writes the folder, unless the recipe has no progress.

    Args:
        bar: where the run is added.
        run: a run that was created or restored, but has not gone on since.
        name: stands before the epoch.

    Returns:
        The function that shows one more step. It takes the row of the epoch that the step ended,
        which is printed at once, or None within an epoch.
    """
    epochs, started = run.recipe.epochs, perf_counter()
    done = first = run.epoch * run.steps + run.step
    total = epochs * run.steps
    printed = run.recipe.progress and run.fabric.is_global_zero

    def describe() -> str:
        return f"{name}epoch {min(run.epoch + 1, epochs)}/{epochs}"

    def advance(row: dict[str, Any] | None) -> None:
        nonlocal done
        done += 1
        bar.advance(task)
        if row is not None and printed:
            bar.update(task, description=describe())
            seconds = (perf_counter() - started) / (done - first) * (total - done)
            left = f"{format_duration(seconds)} left"
            if run.finished and done < total:
                some = f"{n} epochs" if (n := run.recipe.patience) != 1 else "1 epoch"
                left = f"the end: no better validation top-1 for {some}"
            say(f"{name}{describe_epoch(row, epochs)}, {left}")

    task = bar.add_task(describe(), completed=done, total=total)
    return advance


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """Return the row of a finished epoch as one line: losses, accuracies, learning rate, speed.

    Args:
        row: as in `metrics.csv`, where epochs are counted from 0; the line counts them from 1.
        epochs: of the whole run.
    """
    splits = [
        f"{split} loss {row[f'{split}_loss']:.4f} top-1 {row[f'{split}_top1']:.2%}"
        for split in ("train", "validation", "test")
        if row[f"{split}_loss"] is not None
    ]
    number = f"epoch {row['epoch'] + 1:{len(str(epochs))}}/{epochs}"
    speed = f"lr {row['learning_rate']:.3g}, {row['images_per_second']:,.0f} images/s"
    if max(row[f"{split}_loss"] or 0 for split in ("train", "validation", "test")) > ABSURD_LOSS:
        speed += ", a loss above 50: diverged"
    skipped = row.get("skipped_steps")
    skips = f", {skipped} steps skipped as not finite" if skipped else ""
    return f"{number}: {', '.join(splits)}, {speed}{skips}"


def format_duration(seconds: float) -> str:
    """Return a duration in the unit that a reader would choose: 5 s, 12 min, 3 h 05 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
