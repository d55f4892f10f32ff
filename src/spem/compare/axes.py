"""The axes of a study: gates, networks, data and overrides, each one value or a list of them."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from spem._messages import shorten
from spem._schema import Options, Text, check_value
from spem.train.recipe import AXES

_KEYS_OF_GATES = ("placement", "at", "mask")
MOST_RUNS = 10_000


class AxisValue(NamedTuple):
    """One value of an axis of the grid.

    Attributes:
        label: what tables call it.
        recipe: recipe keys that it sets.
        against: name of the row that its rows are compared with; None for that of the study.
        named_keys: the recipe keys whose values are part of the label.
    """

    label: str
    recipe: dict[str, Any]
    against: str | None
    named_keys: frozenset[str]


def read_axis(axis: str, values: Any) -> list[AxisValue]:
    """Return the values of an axis of a study.

    Args:
        axis: data, model, overrides or gate.
        values: what the study says, see `Study`.

    Raises:
        ValueError: there is none, or one is not allowed.
    """
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"the grid is empty: it has no {axis}")
    return [_read_value(axis, value) for given in values for value in _expand_cross(axis, given)]


def _expand_cross(axis: str, value: Any) -> Iterator[Any]:
    """Yield a value of an axis once for each combination of the lists of its `cross`."""
    if not isinstance(value, dict) or "cross" not in value:
        yield value
        return
    lists = value["cross"]
    if not isinstance(lists, dict) or not all(isinstance(v, list) and v for v in lists.values()):
        raise ValueError(f"cross must map keys to lists of values, got {shorten(lists)} ({axis})")
    if (count := math.prod(map(len, lists.values()))) > MOST_RUNS:
        raise ValueError(f"cross of {axis} has {count:,} values, must have at most {MOST_RUNS:,}")
    for chosen in product(*lists.values()):
        own = {key: each for key, each in value.items() if key != "cross"}
        pairs = dict(zip(lists, chosen, strict=True))
        if "label" in own:
            own["label"] = " ".join([str(own["label"]), *(f"{k}={v}" for k, v in pairs.items())])
        yield own | pairs


def _read_value(axis: str, value: Any) -> AxisValue:
    if axis == "overrides" and not isinstance(value, dict):
        raise ValueError(f"overrides must be mappings of recipe keys, got {shorten(value)}")
    keys = dict(value) if isinstance(value, dict) else {axis: value}
    check_value(axis, keys, Options)
    label, against = keys.pop("label", None), keys.pop("against", None)
    if isinstance(label, int | float):
        label = str(label)
    check_value("label", label, Text | None)
    check_value("against", against, Text | None)
    own: dict[str, Any] = {}
    words: list[str] = []
    if axis != "overrides":
        name = keys.pop(axis, "")
        if not ((isinstance(name, str) and name) or (name is None and axis == "gate")):
            raise ValueError(
                f"{axis} must be a name or a mapping that holds one, got {shorten(value)}"
            )
        own[axis] = None if name == "none" else name
        words = [name or "none"]
    options: dict[str, Any] = {}
    if axis == "gate":
        options = {key: keys.pop(key) for key in list(keys) if key not in _KEYS_OF_GATES}
        own["gate_options"] = options
    refuse_axis_keys(keys)
    if label is not None:
        return AxisValue(label, own | keys, against, frozenset())
    words += [f"{key}={each}" for key, each in (options | keys).items()]
    return AxisValue(" ".join(words), own | keys, against, frozenset(keys))


def refuse_axis_keys(keys: Any) -> None:
    """Raise ValueError unless `keys` is a mapping without the recipe keys that have axes."""
    if not isinstance(keys, dict):
        raise ValueError(f"recipe must map recipe keys to values, got {shorten(keys)}")
    for key in keys:
        if key in AXES:
            raise ValueError(
                f"{key} has an axis of its own in a study, it cannot stand in {shorten(keys)}"
            )
