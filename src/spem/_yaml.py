"""YAML files, bundled or the user's, with one sentence for each mistake in them."""

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._files import check_path
from spem._messages import unknown

with needs_extra("train"):
    import yaml
    from jsonargparse import get_loader

_MOST_BYTES, _DEEPEST = 1 << 16, 20


def shipped_names(folder: Traversable) -> list[str]:
    """Return the names, without suffix, of the YAML files in a folder of the package."""
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name[-5:] == ".yaml")


def read_yaml(name_or_path: str, kind: str, shipped: Traversable) -> dict[str, Any]:
    """Return the mapping in a bundled YAML file or in one of the user's.

    Args:
        name_or_path: the name of a bundled file without its suffix, or a path.
        kind: what the file describes, for the errors ("recipe").
        shipped: the folder of the bundled files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the file holds no mapping in valid YAML.
    """
    check_path(kind, name_or_path)
    names = shipped_names(shipped)
    if name_or_path in names:
        source = shipped / f"{name_or_path}.yaml"
    elif Path(name_or_path).is_file():
        source = Path(name_or_path)
    elif Path(name_or_path).suffix in (".yaml", ".yml"):
        raise FileNotFoundError(f"there is no {kind} file {name_or_path}")
    else:
        raise unknown(kind, name_or_path, names)
    return parse_yaml(read_text(source, name_or_path), name_or_path)


def read_text(source: Traversable, name: str) -> str:
    """Return the text of a file, which errors call by `name`.

    Raises:
        ValueError: it is larger than any file of settings, or no text in UTF-8.
    """
    with source.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{name} has more than {_MOST_BYTES:,} bytes: it is no file of settings")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no valid YAML: {error}") from error


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; errors call the text by `name`.

    Raises:
        ValueError: it is no valid YAML, or no mapping.
    """
    try:
        _refuse_bombs(text, name)
        settings = get_loader("yaml")(text)  # YAML 1.2's numbers: 1e-4 is one
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name[:100]} is no valid YAML: {reason}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name[:100]} must hold one `key: value` a line")
    return settings


def _refuse_bombs(text: str, name: str) -> None:
    """Raise ValueError for a text that a few characters make endless: aliases, deep nesting."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{name[:100]} has the alias *{event.anchor}: write the value out")
        if depth > _DEEPEST:
            raise ValueError(f"{name[:100]} is nested more than {_DEEPEST} deep")
