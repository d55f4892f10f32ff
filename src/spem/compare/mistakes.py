"""Which classes the networks of a comparison take for which others: a JSON line for each run."""

from pathlib import Path
from typing import Annotated, Any, TypedDict

from spem._files import check_size
from spem._schema import Text, Texts, is_whole, list_of, parse_json

FILE = "mistakes.jsonl"


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _is_confusion(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_count, value))


class Mistakes(TypedDict):
    """The mistakes of one run on its test images, after the last epoch.

    `images` are the numbers of images of the classes; `confused` has lists of a class, the class
    that it is taken for, and how often.
    """

    key: Text
    classes: Texts
    images: Annotated[list[int], list_of("whole numbers", _is_count)]
    confused: Annotated[list[list[int]], list_of("lists of three whole numbers", _is_confusion)]


def read_mistakes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the mistakes of the runs of a comparison, by their keys; no damaged lines.

    Raises:
        ValueError: the file is larger than any of its kind.
    """
    path, found = folder / FILE, {}
    if not path.exists():
        return found
    check_size(path)
    for line in path.read_text(errors="replace").splitlines():
        try:
            own = parse_json(line, Mistakes)
            _check_classes(own)
        except ValueError:  # counted again by the next `spem compare`
            continue
        found[own["key"]] = own
    return found


def _check_classes(found: dict[str, Any]) -> None:
    """Raise ValueError unless all numbers of classes are below that of the classes."""
    count = len(found["classes"])
    if len(found["images"]) != count or any(max(c[:2]) >= count for c in found["confused"]):
        raise ValueError("there are other classes than those that are named")
