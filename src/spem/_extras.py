"""The sentence for an import that an extra of this package provides."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Let an import that fails inside name the extra that provides it.

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
