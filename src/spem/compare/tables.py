"""How the commands print what they found."""

from collections.abc import Iterable, Sequence

from spem._extras import needs_extra
from spem._messages import printable


def show(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table.

    Args:
        header: one title a column.
        rows: one value a column: texts, numbers, None, or `mean`, `std` and `n` of several runs.
    """
    with needs_extra("train"):
        from rich.console import Console
        from rich.table import Table
    table = Table(*map(_text, header))
    for row in rows:
        table.add_row(*map(_text, row))
    # A name is what it is: [b] is no markup and :+1: no picture.
    Console(markup=False, emoji=False).print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.4g} ± {value['std']:.2g} (n = {value['n']})"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value)).replace("\n", "\\n")
