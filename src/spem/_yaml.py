"""YAML files of the package or of the user, read with one sentence for each mistake."""

import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._messages import unknown

with needs_extra("train"):
    import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML takes `1e-4`, which has no point, for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def shipped_names(folder: Traversable) -> list[str]:
    """Return the names of the YAML files that come with the package in a folder."""
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name[-5:] == ".yaml")


def read_yaml(name_or_path: str, kind: str, shipped: Traversable) -> dict[str, Any]:
    """Return the mapping of a YAML file that comes with the package, or of one of the user's.

    Args:
        name_or_path: the name of a shipped file without its suffix, or a path.
        kind: what the file is, for the errors.
        shipped: folder of those of the package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the file holds no mapping in valid YAML.
    """
    names = shipped_names(shipped)
    if name_or_path in names:
        source = shipped / f"{name_or_path}.yaml"
    elif Path(name_or_path).is_file():
        source = Path(name_or_path)
    elif Path(name_or_path).suffix in (".yaml", ".yml"):
        raise FileNotFoundError(f"there is no {kind} file {name_or_path}")
    else:
        raise unknown(kind, name_or_path, names)
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name_or_path} is no valid YAML: {error}") from error
    return parse_yaml(text, name_or_path)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds; `name` is what errors call it.

    Raises:
        ValueError: it is no valid YAML, or no mapping.
    """
    try:
        settings = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name} must hold one `key: value` a line")
    return settings
