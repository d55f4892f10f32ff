"""What the values of recipes and of a run's files may be: in words, and as tests.

A recipe is a dataclass and a JSON file a `TypedDict`, whose annotations are checked alike: None,
`Literal`, a nested `TypedDict`, or a type with an `Allowed`.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, get_args, get_origin

from spem._messages import shorten, unknown

_MOST_BYTES = 1 << 26  # of a JSON file; the names of 10^6 classes take less
_LONGEST = 4096  # characters of a text; a path has no more
_DEEPEST = 20
# No data set has more classes, no network more places.
_MANY = 10**6
_MOST_FOLDS = 1000


class Allowed(NamedTuple):
    """The values that a key may have: in words, and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (is_whole(value) and abs(value) <= 10**300) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _is_entry(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and "\0" not in value


def whole(low: int, high: int) -> Allowed:
    """Allow whole numbers from `low` to `high`."""
    return Allowed(
        f"a whole number from {low} to {high:,}", lambda v: is_whole(v) and low <= v <= high
    )


def number(low: float, high: float = 1e30) -> Allowed:
    """Allow numbers from `low` to `high`."""
    return Allowed(
        f"a number from {low:g} to {high:g}", lambda v: _is_number(v) and low <= v <= high
    )


def list_of(words: str, accepts: Callable[[Any], bool], most: int = _MANY) -> Allowed:
    """Allow lists of at most so many values, each accepted; `words` say of what."""
    return Allowed(
        f"a list of {words}",
        lambda v: isinstance(v, list) and len(v) <= most and all(map(accepts, v)),
    )


def mapping_to(words: str, accepts: Callable[[Any], bool], most: int = 1000) -> Allowed:
    """Allow mappings of texts to at most so many values, each accepted; `words` say to what."""
    return Allowed(
        f"a mapping of texts to {words}",
        lambda v: (
            isinstance(v, dict)
            and len(v) <= most
            and all(_is_text(key) and accepts(each) for key, each in v.items())
        ),
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether a value is what JSON can hold, and is not nested without end."""
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < _DEEPEST and all(_is_plain(each, depth + 1) for each in inner)
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_sorted(values: Any) -> bool:
    return values == sorted({n for n in values if n > 0})


Text = Annotated[str, Allowed(f"a text of at most {_LONGEST} characters", _is_text)]
Texts = Annotated[list[str], list_of("texts", _is_text)]
Places = Annotated[
    str | list[str],
    Allowed(
        "a text, or a list of texts",
        lambda v: _is_text(v) or (isinstance(v, list) and bool(v) and all(map(_is_text, v))),
    ),
]
Flag = Annotated[bool, Allowed("true or false", lambda v: isinstance(v, bool))]
Count = Annotated[int, whole(1, _MANY)]
Natural = Annotated[int, whole(0, _MANY)]
Few = Annotated[int, whole(1, 1024)]
Workers = Annotated[int, whole(0, 256)]
Pixels = Annotated[int, whole(1, 10_000)]
Sides = Annotated[
    list[int],
    Allowed(
        "a height and a width of 1 to 10,000 pixels",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(whole(1, 10_000).accepts, v)),
    ),
]
Large = Annotated[int, whole(0, 10**18)]
# What scikit-learn takes, which draws the validation split.
_SEED = Allowed("a whole number from 0 to 2^32 - 1", lambda v: is_whole(v) and 0 <= v < 2**32)
Seed = Annotated[int, _SEED]
Seeds = Annotated[list[int], list_of("seeds", _SEED.accepts)]
Positive = Annotated[
    float, Allowed("a number above 0, at most 1e+30", lambda v: _is_number(v) and 0 < v <= 1e30)
]
NonNegative = Annotated[float, number(0)]
Accuracy = Annotated[float, number(0, 1)]
Share = Annotated[float, Allowed("in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)]
Fraction = Annotated[float, Allowed("in (0, 1)", lambda v: _is_number(v) and 0 < v < 1)]
Ratio = Annotated[
    float, Allowed("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1)
]
Area = Annotated[
    list[float],
    Allowed(
        "two ascending numbers above 0, at most 1",
        lambda v: (
            isinstance(v, list)
            and len(v) == 2
            and all(map(_is_number, v))
            and 0 < v[0] <= v[1] <= 1
        ),
    ),
]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Bits = Annotated[list[int], list_of("0 and 1", lambda v: is_whole(v) and v in (0, 1))]
Numbers = Annotated[list[float], list_of("numbers", _is_number)]
Column = Annotated[list[float], list_of("numbers", _is_entry)]
Positives = Annotated[list[float], list_of("numbers above 0", lambda v: _is_number(v) and v > 0)]
Milestones = Annotated[
    list[int],
    Allowed(
        "a list of ascending whole numbers above 0",
        lambda v: isinstance(v, list) and all(map(is_whole, v)) and _is_sorted(v),
    ),
]
Plain = Annotated[Any, Allowed(f"what JSON can hold, at most {_DEEPEST} deep", _is_plain)]
History = Annotated[
    list[dict[str, float | None]],
    list_of(
        "mappings of texts to numbers",
        mapping_to("numbers", _is_entry).accepts,
    ),
]
Names = Annotated[dict[str, str], mapping_to("texts", _is_text)]
Widths = Annotated[dict[str, int], mapping_to("numbers of channels", whole(1, _MANY).accepts)]
Calls = Annotated[
    list[dict[str, Any]],
    list_of("mappings", lambda v: isinstance(v, dict) and _is_plain(v), 1000),
]
OPTIONS = mapping_to("values", _is_plain)
Options = Annotated[dict[str, Any], OPTIONS]


def check_value(key: str, value: object, hint: Any) -> None:
    """Raise ValueError unless a key's value is what its annotation allows."""
    if type(None) in get_args(hint):
        if value is None:
            return
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown(key, value, get_args(hint))
    elif not hasattr(hint, "__metadata__"):
        check_mapping(key, value, hint)
    elif not (allowed := hint.__metadata__[0]).accepts(value):
        raise ValueError(f"{key} must be {allowed.words}, got {shorten(value)}")


def check_fold(fold: int | None, folds: int | None) -> None:
    """Raise ValueError unless `fold` is one of `folds`, or both are None."""
    if folds is None:
        if fold is not None:
            raise ValueError(f"fold must be none without folds, got {shorten(fold)}")
        return
    check_value("folds", folds, Annotated[int, whole(2, _MOST_FOLDS)])
    if not whole(1, folds).accepts(fold):
        raise ValueError(f"fold must be from 1 to folds ({folds}), got {shorten(fold)}")


def check_mapping(name: str, content: Any, schema: Any) -> None:
    """Raise ValueError unless a mapping has the keys of a `TypedDict` with allowed values.

    Other keys, of later versions, may hold whatever JSON can hold.

    Args:
        name: of the mapping, for the errors; "" for one whose keys stand alone.
        content: the mapping.
        schema: the `TypedDict`.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{name or 'the content'} must be a mapping, got {shorten(content)}")
    if missing := sorted(schema.__required_keys__ - content.keys()):
        raise ValueError(f"{name} lacks {', '.join(missing)}".lstrip())
    hints = schema.__annotations__
    for key, value in content.items():
        hint = hints.get(key, Plain)
        hint = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        check_value(f"{name}.{key}".lstrip("."), value, hint)


def parse_json(text: str, schema: Any) -> dict[str, Any]:
    """Return the object of a JSON text that has the keys of a `TypedDict`.

    Raises:
        ValueError: it is no JSON, or its content is not allowed.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no valid JSON: {shorten(str(error))}") from error
    check_mapping("", content, schema)
    return content


def read_json(path: Path, schema: Any) -> dict[str, Any]:
    """Return the object of a JSON file that has the keys of a `TypedDict`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or no JSON, or its content is not allowed.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        return parse_json(content.decode(), schema)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or none that spem has written: {error}") from error
