"""Imports that need an extra of this package say which."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Add the name of the extra to the error of an import inside the block.

    Args:
        extra: the extra's name in `pip install 'spem[extra]'`.

    Raises:
        ImportError: the import failed.
    """
    try:
        yield
    except ImportError as error:
        message = f"{error}; it comes with the extra '{extra}': pip install 'spem[{extra}]'"
        raise ImportError(message) from error
