"""One sentence for a name that is not known, the nearest known names first."""

from collections.abc import Iterable
from difflib import SequenceMatcher


def unknown(kind: str, value: object, known: Iterable[str]) -> ValueError:
    """Return the error for a `value` that is none of the `known` names of this `kind`.

    Args:
        kind: what is named, in the singular ("gate", "recipe key").
        value: the name that was given.
        known: the names that are allowed, in any order.

    Example:
        >>> print(unknown("gate", "spme", ["se", "spem", "eca"]))
        unknown gate 'spme'; known: spem, se, eca
    """
    names = sorted(known)
    names.sort(key=lambda name: -SequenceMatcher(None, str(value).lower(), name.lower()).ratio())
    return ValueError(f"unknown {kind} {value!r}; known: {', '.join(names)}")
