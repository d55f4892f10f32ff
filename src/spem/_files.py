"""Files that are written whole or not at all, and their paths."""

import csv
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from errno import EISDIR, ENOENT
from pathlib import Path
from typing import Any, TextIO

from spem._messages import shorten


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write; it is renamed to `path` once it is complete and on the disk.

    Behind a symbolic link, the file that it points to is replaced. A device or a pipe is no file
    to replace: the block writes to `path` itself.

    Args:
        path: the file that is created or replaced, unless the block raises.

    Raises:
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: its folder is missing.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(path.parent))
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with errors_name(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors lets only the owner read its files
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let errors of the system name a file: where a write fails, the system does not say of which.

    Args:
        path: the file that the block writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_leftover(path: Path, names: Collection[str]) -> bool:
    """Return whether a file was left by a process that died while it wrote one of these names."""
    match = re.fullmatch(r"\.(.+)\.\d+", path.name)
    return match is not None and match[1] in names


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what processes that died have left of these files; nobody else may write them now."""
    for path in folder.glob(".*"):
        if is_leftover(path, names):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def open_table(path: Path) -> TextIO:
    """Open a CSV file for writing.

    Names of files in another encoding than UTF-8 are written with the bytes that they have.
    """
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file atomically; columns are the keys of the first row, None an empty field."""
    with atomically(path) as temporary, open_table(temporary) as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def check_size(path: Path, most: int = 1 << 26) -> None:
    """Raise ValueError where a file has more bytes than any of its kind that spem has written."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path} has {size:,} bytes, must have at most {most:,}")


def check_path(name: str, value: str | Path) -> Path:
    """Return a path; raise ValueError unless it is a path, or a text that can be one."""
    if not isinstance(value, str | Path) or len(str(value)) > 4096 or "\0" in str(value):
        raise ValueError(f"{name} is {shorten(value)}, must be a path")
    return Path(value)
