"""What a comparison shows while it runs."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from spem._extras import needs_extra
from spem.compare.planned import Cell, folder_of
from spem.compare.records import Record, row_of

with needs_extra("train"):
    from rich import get_console
    from rich.live import Live
    from rich.table import Table

_HEADER = 9  # lines of the terminal that the rows leave free


class Board:
    """A live table of the rows of a comparison, and one line for each run that ends.

    Args:
        cells: all that are planned.
        folder: of the comparison.
        records: by key, of the finished and failed runs; read again at each update.
        jobs: runs at once.
        live: whether there is a table that is drawn anew, or lines alone.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        folder: Path,
        records: dict[str, Record],
        jobs: int,
        live: bool,
    ):
        self.cells, self.folder, self.records, self.jobs = cells, folder, records, jobs
        self._by_folder = {folder_of(folder, cell): cell for cell in cells}
        self._running: list[Cell] = []
        self._console = get_console()
        shown = live and self._console.is_terminal
        self._live = Live(console=self._console, auto_refresh=False) if shown else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def update(self, folders: Iterable[Path]) -> None:
        """Show that the runs in these folders go on."""
        self._running = [self._by_folder[folder] for folder in folders]
        if self._live:
            self._live.update(self._table(), refresh=True)

    def tell(self, cell: Cell, error: str | None) -> None:
        """Say how a run ended."""
        where = f"{cell.row}, {cell.model}, {cell.data}, seed {cell.recipe.seed}"
        if error is None:
            summary = self.records[cell.key]["summary"]
            text = f"test top-1 {summary['final_test_top1']:.2%} after {summary['seconds']:,.0f} s"
        else:
            text = f"failed: {error}"
        done = sum(each.key in self.records for each in self.cells)
        line = f"[{done}/{len(self.cells)}] {where}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        rows: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault((cell.model, cell.data, cell.row), []).append(cell)
        title = ", ".join(filter(None, (self._state(), self._remaining())))
        table = Table("model", "data", "gate", "done", "test top-1", "now", title=title)
        for place in _fitting(rows, self._running, self._console.height - _HEADER):
            table.add_row(*place, *self._columns(rows[place]))
        return table

    def _columns(self, cells: list[Cell]) -> tuple[str, str, str]:
        ended = [self.records[cell.key] for cell in cells if cell.key in self.records]
        found = [r["summary"]["final_test_top1"] for r in ended if r["summary"]]
        mean = f"{statistics.fmean(found):.2%}" if found else "-"
        if len(found) > 1:
            mean += f" ± {statistics.stdev(found):.2%}"
        now = ", ".join(
            f"seed {cell.recipe.seed}: {self._epochs(cell)}/{cell.recipe.epochs}"
            for cell in cells
            if cell in self._running
        )
        return f"{len(found)}/{len(cells)}", mean, now

    def _epochs(self, cell: Cell) -> int:
        """Return how many epochs of a run are finished."""
        table = folder_of(self.folder, cell) / "metrics.csv"
        return len(table.read_text().splitlines()) - 1 if table.exists() else 0

    def _state(self) -> str:
        ended = [self.records[cell.key] for cell in self.cells if cell.key in self.records]
        failed = sum(record["error"] is not None for record in ended)
        return f"{len(ended)} of {len(self.cells)} runs" + f", {failed} failed" * bool(failed)

    def _remaining(self) -> str:
        """Estimate what is left from the epochs that were timed, of the same network if there is.

        A network that has not been timed counts as the mean of those that were.
        """
        timed: dict[tuple[str, str], list[float]] = {}
        for record in self.records.values():
            if record["summary"]:
                seconds = record["summary"]["seconds"] / record["recipe"]["epochs"]
                timed.setdefault((record["model"], record["data"]), []).append(seconds)
        if not timed:
            return ""
        means = {place: statistics.fmean(values) for place, values in timed.items()}
        anywhere = statistics.fmean(means.values())
        left = sum(
            (cell.recipe.epochs - self._epochs(cell)) * means.get((cell.model, cell.data), anywhere)
            for cell in self.cells
            if cell.key not in self.records
        )
        return f"about {_duration(left / self.jobs)} left" if left else ""


def _fitting(
    rows: dict[tuple[str, str, str], list[Cell]], running: list[Cell], height: int
) -> list[tuple[str, str, str]]:
    """Return the rows that a terminal has lines for, those that are running first of all."""
    if len(rows) <= height:
        return list(rows)
    busy = [place for place, cells in rows.items() if any(cell in running for cell in cells)]
    return busy[: max(1, height)]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def results(records: Iterable[Record]) -> list[tuple[object, ...]]:
    """Return one row for each network that came to results, as `tables.show` prints it."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if record["summary"]:
            place = (record["model"], record["data"], row_of(record))
            found.setdefault(place, []).append(100 * record["summary"]["final_test_top1"])
    return [
        (
            *place,
            len(values),
            f"{statistics.fmean(values):.2f}",
            f"{statistics.stdev(values):.2f}" if len(values) > 1 else None,
        )
        for place, values in found.items()
    ]
