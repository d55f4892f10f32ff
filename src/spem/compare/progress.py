"""What a comparison shows in the terminal while it runs, and at its end."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from spem._extras import needs_extra
from spem._messages import printable, say
from spem.compare.planned import PlannedRun
from spem.compare.records import Record
from spem.train.progress import format_duration

with needs_extra("train"):
    from rich import get_console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

_FREE_LINES = 9  # of the terminal: title, header and frame of the table, and the latest messages


class ProgressTable:
    """A table of the networks of a comparison, and one line for each run that ends.

    In a terminal the table is drawn anew while the runs train; elsewhere it is printed at the end.

    Args:
        plan: all runs of the comparison.
        folder: of the comparison.
        records: by key, of the finished and failed runs; read again at each update.
        jobs: runs at once.
        live: whether to draw the table while the runs train.
    """

    def __init__(
        self,
        plan: Sequence[PlannedRun],
        folder: Path,
        records: dict[str, Record],
        jobs: int,
        live: bool,
    ):
        self.plan, self.folder, self.records, self.jobs = plan, folder, records, jobs
        rows: dict[tuple[str, str, str], list[PlannedRun]] = {}
        for run in plan:
            rows.setdefault((run.model, run.data, run.row), []).append(run)
        self._rows = list(rows.values())
        self._running: list[PlannedRun] = []
        self._console = get_console()
        self._live = None
        if live and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._console.print(self._table(self._rows))

    def show_running(self, folders: Iterable[Path]) -> None:
        """Show that the runs in these folders are training."""
        names = {folder.name for folder in folders}
        self._running = [run for run in self.plan if run.key in names]
        if self._live:
            self._live.update(self._table(self._fitting_rows()), refresh=True)

    def print_end(self, run: PlannedRun, error: str | None) -> None:
        """Print how a run ended: its test accuracy and duration, or the error."""
        if error is None:
            summary = self.records[run.key]["summary"]
            text = f"test top-1 {summary['final_test_top1']:.2%} after {summary['seconds']:,.0f} s"
        else:
            text = f"failed: {error}"
        done = sum(each.key in self.records for each in self.plan)
        name = f"{run.row}, {run.model}, {run.data}, {run.repeat}"
        say(f"[{done}/{len(self.plan)}] {name}: {text}")

    def _fitting_rows(self) -> list[list[PlannedRun]]:
        """Return the rows that the terminal has lines for: those with a running run, if not all."""
        height = self._console.height - _FREE_LINES
        if len(self._rows) <= height:
            return self._rows
        running = [row for row in self._rows if any(run in self._running for run in row)]
        return running[: max(1, height)]

    def _table(self, rows: list[list[PlannedRun]]) -> Table:
        ended = [self.records[run.key] for run in self.plan if run.key in self.records]
        failed = sum(record["error"] is not None for record in ended)
        title = f"{len(ended)} of {len(self.plan)} runs" + f", {failed} failed" * bool(failed)
        table = Table(
            "model", "data", "gate", "done", "test top-1", "now", title=title + self._remaining()
        )
        for row in rows:
            cells = (row[0].model, row[0].data, row[0].row, *self._results(row))
            table.add_row(
                *(Text(printable(cell)) for cell in cells)
            )  # a name with [b] in it is no markup
        return table

    def _results(self, runs: list[PlannedRun]) -> tuple[str, str, str]:
        ended = [self.records[run.key] for run in runs if run.key in self.records]
        accuracies = [r["summary"]["final_test_top1"] for r in ended if r["summary"]]
        mean = f"{statistics.fmean(accuracies):.2%}" if accuracies else "-"
        if len(accuracies) > 1:
            mean += f" ± {statistics.stdev(accuracies):.2%}"
        now = ", ".join(
            f"{run.repeat}: {self._count_epochs(run)}/{run.recipe.epochs}"
            for run in runs
            if run in self._running and run.key not in self.records
        )
        return f"{len(accuracies)}/{len(runs)}", mean, now

    def _count_epochs(self, run: PlannedRun) -> int:
        """Return how many epochs of a run are finished."""
        table = run.folder_in(self.folder) / "metrics.csv"
        return len(table.read_text().splitlines()) - 1 if table.exists() else 0

    def _remaining(self) -> str:
        """Estimate the time that is left from the recorded epochs of the same networks.

        A network without a record counts as the mean of those that have one. `rich.progress`
        takes all steps for equally long, and forgets what an earlier command has timed.
        """
        timed: dict[tuple[str, str], list[float]] = {}
        for record in self.records.values():
            if record["summary"]:
                seconds = record["summary"]["seconds"] / len(record["history"]["epoch"])
                timed.setdefault((record["model"], record["data"]), []).append(seconds)
        if not timed:
            return ""
        means = {place: statistics.fmean(values) for place, values in timed.items()}
        overall = statistics.fmean(means.values())
        left = sum(
            means.get((run.model, run.data), overall)
            * (run.recipe.epochs - self._count_epochs(run))
            for run in self.plan
            if run.key not in self.records
        )
        return f", about {format_duration(left / self.jobs)} left" if left else ""
