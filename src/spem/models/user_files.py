"""The user's Python files that register gates and networks, told apart by their SHA-256 sums."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from spem.gates import GATES
from spem.models.registry import MODELS, PREPROCESSING

_SUM = "#sha256="
_run: list[str] = []  # those that this process has run, as `import_files` takes them


def import_files(files: Iterable[str]) -> None:
    """Run Python files that register gates and networks (`spem.register`, `spem.register_model`).

    A file that this process has run or imported before, or a copy of it, is not run again.

    Args:
        files: paths; each may end in `#sha256=SUM`, the sum that the file must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has another sum, or raises an error; what it registered is forgotten.
    """
    for pinned in pin_files(files):
        _import_file(*_split(pinned))


def pin_files(files: Iterable[str]) -> list[str]:
    """Return the paths of files, each with the sum of its content: `PATH#sha256=SUM`.

    Args:
        files: paths, with or without sums.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has another sum than the one that is given, or two files have one name:
            runs know files by name and sum.
    """
    pinned, places = [], {}
    for file in files:
        path, wanted = _split(file)
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} to import")
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if wanted not in ("", found):
            raise ValueError(
                f"{path} has changed: its SHA-256 sum was {wanted[:12]}…, now it is {found[:12]}…"
            )
        earlier, other = places.setdefault(Path(path).name, (path, found))
        if other != found:
            raise ValueError(f"{earlier} and {path} are different files of one name: rename one")
        pinned.append(f"{path}{_SUM}{found}")
    return pinned


def sums_by_name(files: Iterable[str]) -> dict[str, str]:
    """Return the sums of files, "" where one has none, by name without folder."""
    return {Path(path).name: wanted for path, wanted in map(_split, files)}


def changed_files(sums: Mapping[str, str]) -> list[str]:
    """Return the names of the files that this process has run with other sums than these."""
    run = sums_by_name(_run)
    return [name for name, wanted in sums.items() if run.get(name, wanted) != wanted]


def files_run() -> list[str]:
    """Return the files that this process has run, for another process to run them, too."""
    return list(_run)


def _split(file: str) -> tuple[str, str]:
    path, _, wanted = file.partition(_SUM)
    return path, wanted


def _import_file(path: str, found: str) -> None:
    place = Path(path).resolve()
    if any(getattr(module, "__file__", None) == str(place) for module in [*sys.modules.values()]):
        return
    # The same name in every process, so that what the file defines can be sent to another one.
    name = f"spem_import_{place.stem}_{found[:12]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported: its name must end in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    registries: list[dict[str, Any]] = [cast(Any, GATES), MODELS, PREPROCESSING]
    before = [(registry, dict(registry)) for registry in registries]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        for registry, content in before:
            registry.clear()
            registry.update(content)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be imported: {reason}") from error
    _run.append(f"{place}{_SUM}{found}")
