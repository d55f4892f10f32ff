"""Imports that need an extra of this package say which, and how to install it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Say how to install what an import inside the block lacks.

    Args:
        extra: the extra's name in `pyproject.toml`.

    Raises:
        ImportError: the import failed, or the installed torchvision does not fit PyTorch.
    """
    try:
        yield
    except (ImportError, RuntimeError, AttributeError) as error:
        # Of a torchvision that was built for another torch, as torchmetrics imports it.
        if "torchvision" in str(error) and not isinstance(error, ModuleNotFoundError):
            raise ImportError(_describe_torchvision(error)) from error
        if not isinstance(error, ImportError):
            raise
        command = install_command(extra)
        raise ImportError(f"{error}; it comes with the extra '{extra}': {command}") from error


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, from where it was installed.

    Args:
        extra: the extra's name in `pyproject.toml`.
    """
    try:
        record = json.loads(distribution("spem").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # a checkout on the path of Python
        record = {"url": Path(__file__).parents[2].as_uri(), "dir_info": {"editable": True}}
    url, edit = record.get("url", ""), "-e " if record.get("dir_info", {}).get("editable") else ""
    if url.startswith("file:"):
        return f"pip install {edit}'{unquote(urlsplit(url).path)}[{extra}]'"
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}"
    return f"pip install 'spem[{extra}]{f' @ {url}' if url else ''}'"


def _describe_torchvision(error: Exception) -> str:
    try:
        found = f"torchvision {version('torchvision')}"
    except PackageNotFoundError:
        found = "the installed torchvision"
    return (
        f"{found} does not fit torch {version('torch')} ({error}): remove it by `pip uninstall"
        " torchvision`, as spem does not need it, or install the build that belongs to this torch"
    )
