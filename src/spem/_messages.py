"""Sentences for people: how they are printed, and those about wrong input."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from errno import ENOENT
from pathlib import Path
from reprlib import Repr
from typing import Any

from spem._extras import needs_extra

# So many names are listed whole; of more, the nearest three.
_FEW = 6
_COMMANDS = {"gate": "spem gates", "model": "spem models", "recipe key": "spem train --help"}


# Control characters, halves of characters, and what makes a terminal write from right to left.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class _Shortener(Repr):
    """`reprlib.Repr` with more room for texts, which says of tensors and arrays their shape."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxlevel = 2

    def repr1(self, x: Any, level: int) -> str:
        if hasattr(type(x), "__array__") and getattr(x, "ndim", 0):
            return f"{type(x).__name__} of shape {tuple(x.shape)}"
        return super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 1000:  # Python refuses to write one of 4,301 digits
            return "a number of more than 300 digits"
        return super().repr_int(x, level)


_SHORTENER = _Shortener()


def shorten(value: object) -> str:
    r"""Return the `repr` of any value for a message: in one line of at most 120 characters.

    Example:
        >>> print(shorten("a\n" + 200 * "b"))
        'a\nbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb...bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
    """
    text = " ".join(printable(_SHORTENER.repr(value)).split())
    return text if len(text) <= 120 else f"{text[:104]}...{text[-10:]}"


def unknown(kind: str, value: object, known: Iterable[str], listed_by: str = "") -> ValueError:
    """Return the error for a `value` that is none of the `known` names of this `kind`.

    Args:
        kind: what is named, in the singular ("gate", "recipe key").
        value: the name that was given.
        known: the names that are allowed, in any order.
        listed_by: the command that lists them all; that of gates, models and recipe keys is known.

    Example:
        >>> print(unknown("pool", "maen", ["max", "min", "mean"]))
        unknown pool 'maen'; known: mean, max, min
    """
    names = sorted(known)
    given = value.lower()[:100] if isinstance(value, str) else ""
    names.sort(key=lambda name: -SequenceMatcher(None, given, name.lower()).ratio())
    names = [shorten(name)[1:-1] for name in names]
    text = f"unknown {kind} {shorten(value)}; known: {', '.join(names)}"
    if len(names) > _FEW:
        command = listed_by or _COMMANDS.get(kind)
        text = f"unknown {kind} {shorten(value)}; known: {', '.join(names[:3])}, …"
        text += f"; `{command}` lists all" if command else f" ({len(names)} in all)"
    return ValueError(text)


def not_found(folder: Path, what: str, file: str) -> FileNotFoundError:
    """Return the error for a folder that is missing, or holds no `what` for want of a `file`.

    Example:
        >>> print(not_found(Path("."), "finished run", "config.json"))
        . holds no finished run: config.json is missing
    """
    if not folder.exists():
        return FileNotFoundError(f"there is no folder {folder}")
    return FileNotFoundError(f"{folder} holds no {what}: {file} is missing")


def describe_error(error: Exception) -> str:
    """Return what an error says, in one line; one of the operating system names its path.

    Example:
        >>> describe_error(PermissionError(13, "Permission denied", "runs/a"))
        'permission denied: runs/a'
    """
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return " ".join(str(error).split())
    if error.errno == ENOENT:
        return f"there is no file or folder {error.filename}"
    return f"{str(error.strerror).lower()}: {error.filename}"


def printable(text: str) -> str:
    r"""Return a text in which control characters are written out, but for ends of lines and tabs.

    A terminal would obey them: the name of a folder could hide or change what else it shows. Bytes
    of names that are not UTF-8 are written out, too.

    Example:
        >>> print(printable("a\x1b[31mb\udcff"))
        a\x1b[31mb\xff
    """
    return _CONTROLS.sub(_write_out, text)


def _write_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # stands for a byte that Python could not decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str) -> None:
    """Print a line at once, above a running progress bar.

    Args:
        text: printed as it is: `[b]` and `:+1:` in the name of a folder mean nothing to rich.
    """
    with needs_extra("train"):
        from rich import get_console

    get_console().print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
