"""Many paths in one array, and the list of a folder's pictures, kept in a file."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from spem._extras import needs_extra
from spem._files import atomically
from spem.data.images import IMAGE_SUFFIXES

# Shorter lists are made in a second.
_WORTH = 50_000
_log = logging.getLogger("spem")


class Names(Sequence[Path]):
    """Paths below a folder, in one array of bytes.

    A million of them take 40 MB, which processes that are forked share; a list of paths takes 200
    MB in each of them.

    Args:
        root: the folder.
        content: the paths below it as bytes, encoded as the file system has them, one behind the
            other; uint8.
        ends: where each path ends in `content`; int64, (N,).
    """

    def __init__(self, root: Path, content: np.ndarray, ends: np.ndarray):
        self.root, self.content, self.ends = root, content, ends

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> "Names":
        """Return the paths of these names below a folder."""
        encoded = [os.fsencode(name) for name in names]
        content = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(root, content, np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return (
            self.root == other.root
            and np.array_equal(self.ends, other.ends)
            and np.array_equal(self.content, other.content)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def name(self, row: int) -> str:
        """Return a path below the folder, with "/" between its parts."""
        row = range(len(self))[row]
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(self.content[start : self.ends[row]].tobytes())

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> "Names": ...
    def __getitem__(self, row: int | slice) -> "Path | Names":
        if isinstance(row, slice):
            return self.take(range(len(self))[row])
        return self.root / self.name(row)

    def __iter__(self) -> Iterator[Path]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: Sequence[int]) -> "Names":
        """Return the paths of some rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        starts = np.concatenate(([0], self.ends[:-1]))[chosen]
        lengths = self.ends[chosen] - starts
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            starts - (ends - lengths), lengths
        )
        return Names(self.root, self.content[places], ends)

    @classmethod
    def join(cls, lists: Sequence["Names"]) -> "Names":
        """Return the paths of several lists below one folder, one list behind the other."""
        lengths = np.concatenate([np.diff(each.ends, prepend=0) for each in lists])
        content = np.concatenate([each.content for each in lists])
        return cls(lists[0].root, content, np.cumsum(lengths, dtype=np.int64))

    def read(self, row: int) -> bytes:
        """Return the content of a file."""
        return self[row].read_bytes()


def list_images(root: Path, folders: Sequence[str], kept: Path | None = None) -> list[Names]:
    """Return the picture files in some folders and all folders below them, each sorted by path.

    Hidden files are left out, see `find_images`, and links to folders not followed.

    Args:
        root: a folder.
        folders: below it, with "/" between their parts.
        kept: the file in which a long list is kept for the next time; it counts as long as no
            folder has been changed, which the system notes where files are added or removed. None:
            it is not kept.
    """
    if kept is not None and (found := _read_lists(root, folders, kept)) is not None:
        return found
    changed: dict[str, int] = {}
    lists = [
        Names.of(root, sorted(_walk(root, folder, changed), key=_sort_key)) for folder in folders
    ]
    whole = Names.join(lists)
    if kept is not None and len(whole) >= _WORTH:
        counts = np.array([*map(len, lists)], np.int64)
        arrays = {"content": whole.content, "ends": whole.ends, "counts": counts}
        keep_arrays(kept, arrays, {"folders": list(folders), "changed": changed})
    return lists


def _read_lists(root: Path, folders: Sequence[str], kept: Path) -> list[Names] | None:
    """Return lists that were kept, unless one of the folders has changed since."""

    def fits(facts: Any) -> bool:
        return facts["folders"] == list(folders) and all(
            (root / name).stat().st_mtime_ns == changed
            for name, changed in facts["changed"].items()
        )

    if (found := read_arrays(kept, fits)) is None:
        return None
    whole, last = Names(root, found["content"], found["ends"]), found["counts"].cumsum().tolist()
    return [whole[end - n : end] for n, end in zip(found["counts"].tolist(), last, strict=True)]


def _walk(root: Path, folder: str, changed: dict[str, int]) -> Iterator[str]:
    """Yield the pictures below a folder of `root`, and note when each folder changed last."""
    path = root / folder
    changed[folder] = path.stat().st_mtime_ns
    inner = []
    with os.scandir(path) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if _is_folder(entry):
                inner += [] if entry.is_symlink() else [name]
            elif entry.name[0] != "." and entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield name
    for name in inner:
        yield from _walk(root, name, changed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def keep_arrays(path: Path, arrays: dict[str, np.ndarray], facts: Any) -> None:
    """Keep what was listed for the next time; where that fails, say so.

    Args:
        path: the file.
        arrays: what was listed.
        facts: what must be the same the next time, of JSON's types.
    """
    with needs_extra("train"):
        from safetensors.numpy import save_file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as temporary:
            save_file(arrays, temporary, {"facts": json.dumps(facts)})
    except OSError as error:
        _log.warning("the list of the pictures is not kept for the next run: %s", error)


def read_arrays(path: Path, fits: Callable[[Any], bool]) -> dict[str, np.ndarray] | None:
    """Return what `keep_arrays` has kept, or None if it is damaged, or the facts are others now.

    Args:
        path: the file.
        fits: whether the facts that were kept are those of today.
    """
    with needs_extra("train"):
        from safetensors import safe_open
    try:
        with safe_open(path, "np") as stored:
            if not fits(json.loads(stored.metadata()["facts"])):
                return None
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        for name in found:
            if name.endswith("ends"):
                _check_ends(found[f"{name[:-4]}content"], found[name])
    except FileNotFoundError:
        return None
    except Exception as error:  # of any kind: the file may hold anything
        _log.warning("%s cannot be read, so the pictures are listed again: %s", path, error)
        return None
    return found


def _check_ends(content: np.ndarray, ends: np.ndarray) -> None:
    """Raise ValueError unless stored arrays can be those of `Names`."""
    types = content.dtype == np.uint8 and ends.dtype == np.int64 and content.ndim == ends.ndim == 1
    if not types or (np.diff(ends, prepend=0) <= 0).any() or ends[-1:] != len(content):
        raise ValueError("its sizes do not fit each other")


def _sort_key(name: str) -> str:
    """Return a text by which paths are sorted by their parts, as `Path` sorts them."""
    return name.replace("/", "\0")
