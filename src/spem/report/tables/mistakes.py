"""The mistakes of the networks of a group: what is taken for what, and how often."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spem.compare.records import Record
from spem.report.tables.cells import TextCell, TextTable, make_cell

_CONFUSIONS = 12
_CLASSES = 20
# A network that gives one answer for such a share of the images has learned next to nothing.
_ALIKE = 0.95
_NOTE = (
    "Of the networks after the last epoch, summed over the runs: how many test images, and which"
    " share of those of the class. spem evaluate shows the images of a run, whose folder is below"
    " cells/."
)


class _Counted(NamedTuple):
    """The mistakes of a row, summed over its runs: images by class, and how often each pair."""

    images: Counter[int]
    confused: Counter[tuple[int, int]]


def make_mistakes(
    rows: Mapping[str, Sequence[Record]], mistakes: Mapping[str, dict[str, Any]]
) -> dict[str, TextTable]:
    """Return tables of the mistakes of a group, by their titles; none where nothing was counted.

    Args:
        rows: the records of finished runs by row.
        mistakes: of runs, by their keys.
    """
    own = {
        row: [mistakes[r["key"]] for r in some if r["key"] in mistakes]
        for row, some in rows.items()
    }
    counted = {row: _sum(found) for row, found in own.items() if found}
    names = [found["classes"] for some in own.values() for found in some]
    if not names or any(each != names[0] for each in names):
        return {}
    tables = {"Most frequent mistakes": _list_confusions(counted, names[0])}
    title = "Correct images of each class, %"
    if len(names[0]) > _CLASSES:
        title = f"Correct images of the {_CLASSES} classes with the most mistakes, %"
    return tables | {title: _list_classes(counted, names[0])}


def _sum(found: Sequence[dict[str, Any]]) -> _Counted:
    images, confused = Counter[int](), Counter[tuple[int, int]]()
    for each in found:
        images.update(dict(enumerate(each["images"])))
        confused.update({(label, other): count for label, other, count in each["confused"]})
    return _Counted(images, confused)


def _list_confusions(counted: Mapping[str, _Counted], classes: Sequence[str]) -> TextTable:
    """Return the pairs of classes that all rows together confuse most often."""
    total = Counter[tuple[int, int]]()
    for each in counted.values():
        total.update(each.confused)
    rows: list[Sequence[TextCell]] = [
        [
            make_cell(classes[label]),
            make_cell(classes[other]),
            *(_share(each.confused[label, other], each.images[label]) for each in counted.values()),
        ]
        for (label, other), _ in total.most_common(_CONFUSIONS)
    ]
    return TextTable(["class", "taken for", *counted], rows, [_NOTE] if rows else ["No mistake."])


def _list_classes(counted: Mapping[str, _Counted], classes: Sequence[str]) -> TextTable:
    """Return the share of the images of each class that each row gets right."""
    missed = {row: Counter[int]() for row in counted}
    for row, each in counted.items():
        for (label, _), count in each.confused.items():
            missed[row][label] += count
    worst = Counter[int]()
    for some in missed.values():
        worst.update(some)
    order = sorted(range(len(classes)), key=lambda label: -worst[label])[:_CLASSES]
    rows: list[Sequence[TextCell]] = [
        [
            make_cell(classes[label]),
            *(_correct(missed[row][label], counted[row].images[label]) for row in counted),
        ]
        for label in sorted(order)
    ]
    return TextTable(["class", *counted], rows, _note_answers(counted, classes))


def _note_answers(counted: Mapping[str, _Counted], classes: Sequence[str]) -> list[str]:
    """Return what the most frequent class alone would get, and the rows that answer little else."""
    images = next(iter(counted.values())).images
    label, most = images.most_common(1)[0]
    notes = [
        f"Whoever always answers {classes[label]} gets {most / images.total():.1%} of the images"
        " right."
    ]
    for row, each in counted.items():
        answers = Counter(each.images)
        for (own, other), count in each.confused.items():
            answers.update({own: -count, other: count})
        label, most = answers.most_common(1)[0]
        if most >= _ALIKE * answers.total():
            notes.append(
                f"{row} answers {classes[label]} for {most / answers.total():.1%} of the images: it"
                " has learned next to nothing."
            )
    return notes


def _share(count: int, images: int) -> TextCell:
    return TextCell(f"{count:,} ({count / images:.1%})" if images else "-", count)


def _correct(missed: int, images: int) -> TextCell:
    if not images:
        return TextCell("-")
    share = 100 * (1 - missed / images)
    return TextCell(f"{share:.1f}", share)
