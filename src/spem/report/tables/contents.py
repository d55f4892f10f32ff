"""Everything that a report shows, read from the folder of a comparison."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._messages import not_found
from spem.compare.mistakes import read_mistakes
from spem.compare.records import (
    Ledger,
    Record,
    group_records,
    number_of,
    read_costs,
    read_study,
    repeat_of,
    row_of,
)
from spem.report.published import PUBLISHED, Published, fits
from spem.report.significance import WILCOXON_FROM, state_rule
from spem.report.tables.cells import TextCell, TextTable, make_cell, mean_cell
from spem.report.tables.group import Group, find_repeats, make_group

with needs_extra("train"):
    import yaml

_READING = (
    "Accuracies are of the test images after the last epoch, in percent; differences are in points,"
    " paired by {0}. ± is the sample standard deviation over the {0}s, [ ] the 95 % interval by"
    " {1}. {2} The best test epoch is how the paper reports: it is chosen on the test images, so it"
    " is no estimate of the accuracy on new ones."
)
_OF_SEEDS = (
    "Student's t",
    "The p of Wilcoxon's signed-rank test is given from"
    f" {WILCOXON_FROM} seeds on and is not corrected.",
)
_OF_FOLDS = (
    "the corrected resampled t-test",
    "Every image is tested in one fold, by networks that were trained on the others. The folds"
    " share training images, so their results are not independent, and a plain t-test would find"
    " differences too often: the corrected resampled t-test (Nadeau and Bengio, “Inference for the"
    " Generalization Error”, Machine Learning 52, 2003) adds the ratio of the test images to the"
    " training images to 1/n in the variance. All intervals and p of this page are by it.",
)
_BESIDE = (
    "The kinds differ: a published best test epoch stands beside our best test epoch, a final epoch"
    " or a mean of several runs beside our final epoch, each a mean over our runs. Recipes and"
    " epochs may differ, too, so a distance between the columns is not the effect of anything."
)


@dataclass(frozen=True)
class Contents:
    """Everything that a report shows.

    Attributes:
        title: of the comparison.
        question: that it was to answer.
        state: how many of the planned runs are finished.
        notes: what is missing, and how to read the tables.
        groups: in the order of the records.
        published: published accuracies beside those of the records; None where there are none.
        commands: that made the runs.
        versions, devices: one line each, with the number of runs.
        recipe: what all runs share, as YAML.
        differing: what differs, one line a row.
    """

    title: str
    question: str | None
    state: str
    notes: list[str]
    groups: list[Group]
    published: TextTable | None
    commands: list[str]
    versions: list[str]
    devices: list[str]
    recipe: str
    differing: list[str]


def read_contents(folder: Path) -> Contents:
    """Read the folder of a comparison.

    Args:
        folder: with `records.jsonl` and, as far as they are there, `study.yaml` and `costs.jsonl`.

    Raises:
        FileNotFoundError: it holds no records.
        ValueError: no run came to a result, or a file is none that `spem compare` writes.
    """
    ledger = Ledger(folder)
    records = list(ledger.records.values())
    finished = _finished(ledger)
    repeats = find_repeats(finished)
    own_words = _OF_FOLDS if repeats.ratio else _OF_SEEDS
    study, costs, mistakes = read_study(folder), read_costs(folder), read_mistakes(folder)
    found = []
    for place, rows in group_records(records).items():
        own = {row_of(cost): cost for cost in costs if (cost["model"], cost["data"]) == place}
        found.append(make_group(*place, rows, own, study.get("method"), mistakes))
    recipe, differing = _recipes(records)
    return Contents(
        title=study.get("title")
        or "Comparison of " + ", ".join(dict.fromkeys(record["model"] for record in records)),
        question=study.get("question"),
        state=_state(len(finished), study.get("planned"), len(records) - len(finished)),
        notes=[
            *_missing(ledger),
            _READING.format(repeats.word, *own_words),
            state_rule(repeats),
        ],
        groups=found,
        published=_compare_published(found),
        commands=list(map(str, study.get("commands") or [])),
        versions=_counted(map(_versions, finished)),
        devices=[*_counted(map(_device, finished)), *dict.fromkeys(map(_measured, costs))],
        recipe=recipe,
        differing=differing,
    )


def _finished(ledger: Ledger) -> list[Record]:
    """Return the records of finished runs; an error says why there is none."""
    folder, records = ledger.folder, list(ledger.records.values())
    if not ledger.path.exists():
        if (folder / "study.yaml").exists():
            raise ValueError(f"no run of {folder} is finished yet: the same spem compare goes on")
        raise not_found(folder, "comparison", "records.jsonl")
    finished = [record for record in records if record["summary"]]
    if len({record["recipe"].get("folds") for record in finished}) > 1:
        raise ValueError(
            f"{ledger.path} has records of seeds and of folds, or of several numbers of folds, and"
            " a table needs one of these: divide it"
        )
    if not finished:
        why = f"; the first one failed: {records[0]['error']}" if records else ""
        why += f"; records.jsonl is damaged ({ledger.reason})" if ledger.reason else ""
        raise ValueError(f"no run of {folder} has come to a result{why}")
    return finished


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _state(finished: int, planned: int | None, failed: int) -> str:
    runs = _count(max(planned or 0, finished + failed), "run")
    verb = "is" if finished == 1 else "are"
    return f"{finished} of {runs} {verb} finished" + f", {failed} failed" * bool(failed)


def _missing(ledger: Ledger) -> list[str]:
    """Return a sentence for the damaged records, and one for each failed run."""
    found = []
    if n := len(ledger.damaged):
        found.append(
            f"{_count(n, 'line')} of records.jsonl {'is' if n == 1 else 'are'} damaged and left"
            f" out ({ledger.reason}); spem compare writes the records of finished runs anew."
        )
    for record in ledger.records.values():
        if not record["summary"]:
            where = f"{row_of(record)}, {record['model']}, {record['data']}, {repeat_of(record)}"
            found.append(f"Failed: {where}: {record['error']}")
    return found


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {value}" for name, value in record["summary"]["versions"].items())


def _device(record: Record) -> str:
    found = record["summary"]
    threads = found.get("threads")  # older summaries say none
    used = _count(threads, "thread") if threads else None
    return ", ".join(filter(None, (found["device"], used, f"{found['kernels']} kernels")))


def _measured(cost: dict[str, Any]) -> str:
    return (
        f"speed and memory: {cost['device']}, {_count(cost['threads'], 'thread')},"
        f" {cost['kernels']} kernels, batches of {cost['batch_size']}, {cost['rounds']} rounds,"
        f" torch {cost['torch']}, spem {cost['spem']}"
    )


def _counted(lines: Iterable[str]) -> list[str]:
    return [f"{line} ({_count(number, 'run')})" for line, number in Counter(lines).items()]


def _recipes(records: Sequence[Record]) -> tuple[str, list[str]]:
    """Return as YAML what the recipes share, and one line a row of what they do not."""
    recipes = [record["recipe"] for record in records]
    word = "seed" if recipes[0].get("fold") is None else "fold"
    keys = [key for key in recipes[0] if key not in ("seed", word)]
    same = [key for key in keys if all(recipe.get(key) == recipes[0][key] for recipe in recipes)]
    lines = {}
    for record in records:
        left_out = (*same, "seed", word)
        own = {key: value for key, value in record["recipe"].items() if key not in left_out}
        place = f"{row_of(record)}, {record['model']}, {record['data']}"
        text = yaml.safe_dump(own, sort_keys=False, default_flow_style=True, width=10**6)
        lines.setdefault((place, text.strip()[1:-1]), []).append(number_of(record))
    differing = []
    for (place, own), numbers in lines.items():
        repeats = f"{word}s {', '.join(map(str, numbers))}"
        differing.append(f"{place}: {', '.join(filter(None, (own, repeats)))}")
    return yaml.safe_dump({key: recipes[0][key] for key in same}, sort_keys=False), differing


def _compare_published(found: Sequence[Group]) -> TextTable | None:
    """Return the published accuracies beside those of the same networks here."""
    rows: list[dict[str, TextCell]] = []
    for group in found:
        recipes = [records[0]["recipe"] for records in group.rows.values()]
        places = {(recipe["model"], recipe["data"]) for recipe in recipes}
        for entry in PUBLISHED:
            if (entry.model, entry.data) in places:
                rows += _published_rows(entry, group)
    return TextTable(list(rows[0]), [[*row.values()] for row in rows], [_BESIDE]) if rows else None


def _published_rows(entry: Published, group: Group) -> list[dict[str, TextCell]]:
    """Return a published accuracy beside each of our rows that it belongs to, or beside none."""
    gate = " ".join([entry.gate or "none", *(f"{k}={v}" for k, v in entry.options.items())])
    theirs = {
        "model": make_cell(entry.model),
        "data": make_cell(entry.data),
        "gate": make_cell(gate),
        "published top-1, %": TextCell(entry.top1, float(entry.top1)),
        "what it is": make_cell(entry.kind),
    }
    source = {"source": make_cell(entry.source)}
    own = {row: r for row, r in group.rows.items() if fits(entry, r[0]["recipe"])}
    ours = [_our_cells(row, records) for row, records in own.items()]
    return [theirs | cells | source for cells in ours or [_our_cells("not run", [])]]


def _our_cells(row: str, records: Sequence[Record]) -> dict[str, TextCell]:
    return {
        "our row": TextCell(row, row if records else None),
        "ours, final epoch, %": mean_cell(records, "final_test_top1"),
        "ours, best test epoch, %": mean_cell(records, "best_test_top1"),
        "our n": make_cell(len({*map(number_of, records)}) or None),
        "our epochs": make_cell(records[0]["recipe"]["epochs"] if records else None),
    }
