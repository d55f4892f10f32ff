"""Sentences for people: how they are printed, and those about wrong input."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from errno import ENOENT
from pathlib import Path
from reprlib import Repr

from spem._extras import needs_extra

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 100
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}
# So many names are listed whole; of more, the nearest three.
_FEW = 6
_COMMANDS = {"gate": "spem gates", "model": "spem models", "recipe key": "spem train --help"}


def shorten(value: object) -> str:
    r"""Return the `repr` of a value for a message: in one line, of about 100 characters at most.

    Example:
        >>> print(shorten("a\n" + 200 * "b"))
        'a\nbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb...bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
    """
    return " ".join(_REPR.repr(value).split())


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
    names.sort(key=lambda name: -SequenceMatcher(None, str(value).lower(), name.lower()).ratio())
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

    A terminal would obey them: the name of a folder could hide or change what else it shows.

    Example:
        >>> print(printable("a\x1b[31mb"))
        a\x1b[31mb
    """
    return text.translate(_CONTROLS)


def say(text: str) -> None:
    """Print a line at once, above a running progress bar.

    Args:
        text: printed as it is: `[b]` and `:+1:` in the name of a folder mean nothing to rich.
    """
    with needs_extra("train"):
        from rich import get_console

    get_console().print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)
