"""Train the planned runs that have no result yet, record them, and measure what they cost."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch.distributed

from spem._extras import needs_extra
from spem._files import write_text
from spem._messages import say, shorten
from spem.compare import launchers
from spem.compare.costs import measure_costs
from spem.compare.mistake_counts import count_mistakes
from spem.compare.planned import PlannedRun
from spem.compare.progress import ProgressTable
from spem.compare.records import (
    Ledger,
    Record,
    group_records,
    make_failure,
    make_record,
    read_costs,
    read_study,
    relabel,
    repeat_of,
    row_of,
)
from spem.compare.run_data import KEYS_OF_DATA, RunData, cache_beside
from spem.data.describe import describe
from spem.data.splits import Dataset, other_images, sum_of_folder
from spem.models.user_files import sums_by_name
from spem.train.devices import create_fabric, keep_freed_memory
from spem.train.folder import is_finished, locked
from spem.train.identity import FREE_KEYS, NEW_KEYS, deciding_keys
from spem.train.setup import prepare
from spem.train.summary import read_summary

with needs_extra("train"):
    import yaml

_FILES = ("study.yaml", "records.jsonl", "costs.jsonl", "report.md", "report.html")
_FILES += ("report.csv", "mistakes.jsonl")


def run_comparison(
    plan: Sequence[PlannedRun],
    folder: Path,
    launch: Callable[..., None],
    *,
    jobs: int = 1,
    costs: bool = True,
    about: dict[str, Any] | None = None,
) -> int:
    """Train the planned runs that have no result yet, and record them.

    Args:
        plan: all runs of the comparison, see `Study.plan`.
        folder: of the comparison.
        launch: `run_here`, or another launcher of `spem.compare.launchers` with its options bound.
        jobs: runs at once, for the estimate of the time that is left.
        costs: measure speed and memory afterwards.
        about: title, question and commands, which `study.yaml` keeps for the report.

    Returns:
        1 if a run failed, else 0.

    Raises:
        ValueError: a network, its data and this machine do not fit, or another comparison works in
            the folder.
        FileNotFoundError: the data is not there.
        KeyboardInterrupt: Ctrl-C.
    """
    ledger = Ledger(folder)
    _refuse_other_recipes(plan, ledger)
    _refuse_other_files(plan, ledger)
    pending = _list_pending(plan, ledger)
    about_data = _check(pending, ledger)
    elastic = torch.distributed.is_torchelastic_launched()
    if elastic and os.environ["RANK"] != "0":
        launch(_without_bars(pending, folder), lambda *_: None, lambda _: None)
        return 0
    for line in about_data:
        say(line)
    with locked(folder, _FILES, "another comparison works"):
        ledger = Ledger(folder)
        _restore_records(plan, ledger)
        if about is not None:
            planned = {*ledger.records, *(run.key for run in plan)}
            _write_study(folder, about | {"planned": len(planned)})
        _train_pending(plan, ledger, launch, jobs)
        if not elastic:
            count_mistakes([run for run in plan if ledger.records[run.key]["summary"]], folder)
        if costs and not elastic:
            _measure_groups(plan, ledger)
    say(f"make the page with: spem report {quote(str(folder))}")
    return int(any(ledger.records[run.key]["error"] for run in plan))


def _train_pending(
    plan: Sequence[PlannedRun], ledger: Ledger, launch: Callable[..., None], jobs: int
) -> None:
    """Launch the runs without a result, and append the record of each when it ends."""
    folder, pending = ledger.folder, _list_pending(plan, ledger)
    for run in pending:
        ledger.records.pop(run.key, None)  # what failed is tried again
    begun = sum((run.folder_in(folder) / "checkpoint.pt").exists() for run in pending)
    counts = {"finished": len(plan) - len(pending), "begun": begun, "new": len(pending) - begun}
    states = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    say(f"{len(plan)} runs: {states}")
    by_folder = {run.folder_in(folder): run for run in pending}
    live = all(run.recipe.progress for run in plan)
    with ProgressTable(plan, folder, ledger.records, jobs, live) as table:

        def record_end(place: Path, error: str | None) -> None:
            run = by_folder[place]
            ledger.append(make_failure(run, error) if error else make_record(run, place))
            table.print_end(run, error)

        launch(_without_bars(pending, folder), record_end, table.show_running)


def _list_pending(plan: Sequence[PlannedRun], ledger: Ledger) -> list[PlannedRun]:
    """Return the runs without a result: neither a record of one nor a folder of a finished run."""
    return [
        run
        for run in plan
        if not (run.key in ledger.records and ledger.records[run.key]["summary"])
        and not _is_finished(run, ledger.folder)
    ]


def _is_finished(run: PlannedRun, comparison: Path) -> bool:
    """Return whether the folder of a run holds all that its record is made of."""
    try:
        return is_finished(run.folder_in(comparison), run.recipe)
    except (ValueError, OSError):  # the run itself says what is wrong with its folder
        return False


def _without_bars(runs: Sequence[PlannedRun], folder: Path) -> launchers.Runs:
    """Return recipe and folder of each run; the progress table replaces their progress bars."""
    return [(replace(run.recipe, progress=False), run.folder_in(folder)) for run in runs]


def _check(runs: Sequence[PlannedRun], ledger: Ledger) -> list[str]:
    """Prepare every network once, so that a mistake in the last run is found before the first.

    Args:
        runs: those without a result.
        ledger: the records of the others.

    Returns:
        What there is to know of the data, in lines.

    Raises:
        ValueError, FileNotFoundError: see `prepare`.
    """
    firsts: dict[tuple[str, str, str], PlannedRun] = {}
    for run in runs:
        if run.recipe.batch_size == "auto":
            raise ValueError(
                "batch_size is auto, must be a number in a comparison: each row would have its own"
            )
        firsts.setdefault((run.data, run.model, run.row), run)
    data, last, lines = RunData(ledger.folder), None, []
    for run in firsts.values():
        try:
            dataset = data.load(run)
            if dataset is not last:
                last = dataset
                lines += describe(dataset)
                _refuse_other_images(run, dataset, ledger)
            prepare(create_fabric(run.recipe), run.recipe, dataset=dataset)
        except ValueError as error:
            raise ValueError(f"{shorten(run.row)} of {run.model} on {run.data}: {error}") from error
    return lines


def _refuse_other_recipes(plan: Sequence[PlannedRun], ledger: Ledger) -> None:
    """Raise ValueError where the folder has a record of the same name and of another recipe.

    A table would mix the two. What is planned is recorded under its own name. Nor can runs of seeds
    and of folds, or of folds of another number, stand beside each other.
    """
    for record in ledger.records.values():
        if record["recipe"].get("folds") != plan[0].recipe.folds:
            raise ValueError(
                f"{ledger.folder} holds {repeat_of(record)}, and {plan[0].repeat} cannot stand in a"
                " table with it: name another folder"
            )
    planned = {run.key for run in plan}
    others = {_name(r): r["recipe"] for key, r in ledger.records.items() if key not in planned}
    for run in plan:
        name = (run.row, run.model, run.data, run.repeat)
        if name in others:
            own, other = deciding_keys(run.recipe), others[name]
            differ = [key for key in own if own[key] != other.get(key)]
            changes = ", ".join(
                f"{k} {shorten(other.get(k))} there, {shorten(own[k])} now" for k in differ
            )
            raise ValueError(
                f"{ledger.folder} holds {shorten(run.row)} of {run.model} on {run.data} with"
                f" {run.repeat} by another recipe ({changes}): name another folder"
            )


def _refuse_other_images(run: PlannedRun, dataset: Dataset, ledger: Ledger) -> None:
    """Raise ValueError where a recorded run had other images of the same folder and split."""
    images = sum_of_folder(dataset)
    keys = [key for key in KEYS_OF_DATA if key not in FREE_KEYS]
    for record in ledger.records.values():
        recipe = NEW_KEYS | record["recipe"]
        own = (record["summary"] or {}).get("images_sum", images)
        if other_images(own, images) and all(recipe.get(k) == getattr(run.recipe, k) for k in keys):
            raise ValueError(
                f"{ledger.folder} holds {shorten(row_of(record))} of other images of {run.data}:"
                " files were added, removed, changed or renamed since; bring them back, or name"
                " another folder"
            )


def _refuse_other_files(plan: Sequence[PlannedRun], ledger: Ledger) -> None:
    """Raise ValueError where a finished run imported a file that has changed since.

    Such runs have the same key, because files may move; a table would mix them.
    """
    for run in plan:
        record = ledger.records.get(run.key)
        if record and record["summary"]:
            imported = record["summary"].get("import") or {}
        elif _is_finished(run, ledger.folder):
            imported = read_summary(run.folder_in(ledger.folder)).get("import") or {}
        else:
            continue
        for name, now in sums_by_name(run.recipe.import_).items():
            if imported.get(name, now) != now:
                raise ValueError(
                    f"{name} has changed since {ledger.folder} has results of {shorten(run.row)}"
                    " with it: restore it (a new gate can have a file of its own), or name another"
                    " folder"
                )


def _name(record: Record) -> tuple[str, str, str, str]:
    return row_of(record), record["model"], record["data"], repeat_of(record)


def _restore_records(plan: Sequence[PlannedRun], ledger: Ledger) -> None:
    """Repair the records, and add those of finished runs that have none or other labels."""
    if ledger.damaged:
        say(
            f"{len(ledger.damaged)} damaged lines of {ledger.path} went to records.damaged; those"
            " of finished runs are written anew"
        )
    ledger.repair()
    for run in plan:
        record, folder = ledger.records.get(run.key), run.folder_in(ledger.folder)
        if record and record["summary"]:
            if renamed := relabel(record, run):
                ledger.append(renamed)
        elif _is_finished(run, ledger.folder):
            ledger.append(make_record(run, folder))


def _write_study(folder: Path, about: dict[str, Any]) -> None:
    """Write `study.yaml`; the commands of earlier comparisons in the folder stay in it."""
    earlier = read_study(folder).get("commands") or []
    commands = list(dict.fromkeys([*earlier, *about["commands"]]))
    text = yaml.safe_dump(about | {"commands": commands}, sort_keys=False, width=1000)
    write_text(folder / "study.yaml", text)


def _measure_groups(plan: Sequence[PlannedRun], ledger: Ledger) -> None:
    """Measure the costs of each group that has results of all its rows and no costs yet."""
    known = read_costs(ledger.folder)
    recipes = {run.key: run.recipe for run in plan}
    cache = cache_beside(plan[0], ledger.folder)
    records = [record for key, record in ledger.records.items() if key in recipes]
    for place, rows in group_records(records).items():
        firsts = [next((r for r in row if r["summary"]), None) for row in rows.values()]
        own = [record for record in firsts if record]
        others = [cost for cost in known if (cost["model"], cost["data"]) != place]
        measured = {row_of(cost) for cost in known if cost not in others}
        if not own or len(own) < len(rows) or measured >= {row_of(record) for record in own}:
            continue
        names = ", ".join(place)
        say(f"measuring speed and memory of {len(own)} networks: {names}")
        keep_freed_memory()
        known = others + measure_costs(own, [recipes[record["key"]] for record in own], cache)
        lines = "".join(json.dumps(cost) + "\n" for cost in known)
        write_text(ledger.folder / "costs.jsonl", lines)
