"""Sentences for people: how they are printed, and the one for a name that is not known."""

from collections.abc import Iterable
from difflib import SequenceMatcher

from spem._extras import needs_extra


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


def say(text: str) -> None:
    """Print a line at once, above a running progress bar.

    Args:
        text: printed as it is: `[b]` and `:+1:` in the name of a folder mean nothing to rich.
    """
    with needs_extra("train"):
        from rich import get_console

    get_console().print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
