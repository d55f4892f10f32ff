"""The cells of a comparison: which are left, their runs, their records, what they cost."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._files import write_text
from spem.compare import launchers
from spem.compare.costs import load_in_turn, measure_costs
from spem.compare.planned import Cell, folder_of
from spem.compare.progress import Board, results
from spem.compare.records import (
    Ledger,
    Record,
    groups,
    make_failure,
    make_record,
    read_costs,
    read_study,
    relabel,
)
from spem.compare.tables import show
from spem.train.devices import create_fabric, keep_freed_memory
from spem.train.setup import prepare

with needs_extra("train"):
    import yaml
    from filelock import FileLock, Timeout
    from rich import get_console


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    run: Callable[..., None],
    *,
    jobs: int = 1,
    costs: bool = True,
    said: dict[str, Any] | None = None,
) -> int:
    """Train the cells that have no result yet, and record them.

    Args:
        cells: of a study.
        folder: of the comparison.
        run: one of the functions of `spem.compare.launchers`, with its own arguments given.
        jobs: runs at once, for the estimate of the time that is left.
        costs: measure speed and memory afterwards.
        said: what `study.yaml` keeps for the report.

    Returns:
        1 if a run came to no result, else 0.

    Raises:
        ValueError: a network, its data and this machine do not fit, or another comparison works in
            the folder.
        FileNotFoundError: the data is not there.
        KeyboardInterrupt: Ctrl-C.
    """
    pending = _pending(cells, folder, Ledger(folder).records)
    _check(pending)
    if launchers.under_torchrun() and not launchers.is_first_process():
        run(_runs(pending, folder), lambda *_: None, lambda _: None)
        return 0
    with _alone(folder):
        ledger = Ledger(folder)
        _take_up(cells, folder, ledger)
        if said is not None:
            planned = {*ledger.records, *(cell.key for cell in cells)}
            _write_study(folder, said | {"planned": len(planned)})
        pending = _pending(cells, folder, ledger.records)
        for cell in pending:
            ledger.records.pop(cell.key, None)  # what failed is tried again
        _say_what_is_left(cells, pending, folder)
        live = all(cell.recipe.progress for cell in cells)
        with Board(cells, folder, ledger.records, jobs, live) as board:
            by_folder = {folder_of(folder, cell): cell for cell in pending}

            def ended(where: Path, error: str | None) -> None:
                cell = by_folder[where]
                ledger.append(make_failure(cell, error) if error else make_record(cell, where))
                board.tell(cell, error)

            run(_runs(pending, folder), ended, board.update)
        own = [ledger.records[cell.key] for cell in cells]
        header = ["model", "data", "gate", "n", "test top-1, %", "deviation"]
        if rows := results(own):
            show(header, rows)
        if costs and not launchers.under_torchrun():
            _measure(cells, folder, ledger)
    get_console().print(f"make the page with: spem report {folder}", soft_wrap=True, markup=False)
    return int(any(record["error"] for record in own))


def _say_what_is_left(cells: Sequence[Cell], pending: Sequence[Cell], folder: Path) -> None:
    begun = sum((folder_of(folder, cell) / "checkpoint.pt").exists() for cell in pending)
    parts = {"finished": len(cells) - len(pending), "begun": begun, "new": len(pending) - begun}
    said = ", ".join(f"{number} {what}" for what, number in parts.items() if number)
    get_console().print(f"{len(cells)} runs: {said}", highlight=False)


def _pending(cells: Sequence[Cell], folder: Path, records: dict[str, Record]) -> list[Cell]:
    """Return the cells without a result: neither a record of one nor a folder of a finished run."""
    return [
        cell
        for cell in cells
        if not (cell.key in records and records[cell.key]["summary"])
        and not (folder_of(folder, cell) / "summary.json").exists()
    ]


def _runs(cells: Sequence[Cell], folder: Path) -> list[tuple[Any, Path]]:
    return [(replace(cell.recipe, progress=False), folder_of(folder, cell)) for cell in cells]


def _check(cells: Sequence[Cell]) -> None:
    """Prepare every network once, so that a mistake in the last cell is found before the first.

    Raises:
        ValueError, FileNotFoundError: see `prepare`.
    """
    firsts: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        firsts.setdefault((cell.data, cell.model, cell.row), cell)
    datasets = load_in_turn(cell.recipe for cell in firsts.values())
    for cell in firsts.values():
        try:
            prepare(create_fabric(cell.recipe), cell.recipe, dataset=next(datasets))
        except ValueError as error:
            place = f"{cell.row!r} of {cell.model} on {cell.data}"
            raise ValueError(f"{place}: {error}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep any other comparison out of a folder; the system frees it when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"another comparison works in {folder}: wait for it, or name another folder"
        ) from None


def _take_up(cells: Sequence[Cell], folder: Path, ledger: Ledger) -> None:
    """Repair the records, and add those of finished runs that have none or other labels."""
    if ledger.damaged:
        get_console().print(
            f"{len(ledger.damaged)} damaged lines of {ledger.path} went to records.damaged; those"
            " of finished runs are written anew",
            soft_wrap=True,
            markup=False,
        )
    ledger.repair()
    for cell in cells:
        record = ledger.records.get(cell.key)
        if record and record["summary"]:
            if renamed := relabel(record, cell):
                ledger.append(renamed)
        elif (folder_of(folder, cell) / "summary.json").exists():
            ledger.append(make_record(cell, folder_of(folder, cell)))


def _write_study(folder: Path, said: dict[str, Any]) -> None:
    """Write what the report says of the comparison; the commands of earlier ones stay."""
    commands = list(dict.fromkeys([*(read_study(folder).get("commands") or []), *said["commands"]]))
    path = folder / "study.yaml"
    write_text(path, yaml.safe_dump(said | {"commands": commands}, sort_keys=False, width=1000))


def _measure(cells: Sequence[Cell], folder: Path, ledger: Ledger) -> None:
    """Measure the costs of each group that has results of all its rows and no costs yet."""
    known = read_costs(folder)
    by_key = {cell.key: cell for cell in cells}
    measured = {(c["model"], c["data"], c["gate"], c["overrides"]) for c in known}
    found = [record for key, record in ledger.records.items() if key in by_key]
    for (model, data), rows in groups(found).items():
        records = [next((r for r in row if r["summary"]), None) for row in rows.values()]
        own = [record for record in records if record]
        places = {(model, data, r["gate"], r["overrides"]) for r in own}
        if not own or len(own) < len(rows) or places <= measured:
            continue
        get_console().print(f"measuring speed and memory of {len(own)} networks: {model}, {data}")
        keep_freed_memory()
        fresh = measure_costs(own, [by_key[record["key"]].recipe for record in own])
        known = [c for c in known if (c["model"], c["data"]) != (model, data)] + fresh
        write_text(folder / "costs.jsonl", "".join(json.dumps(cost) + "\n" for cost in known))
