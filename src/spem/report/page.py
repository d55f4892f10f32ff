"""The page of a comparison: one HTML file that needs nothing else."""

from collections.abc import Sequence
from importlib import resources

from spem._extras import needs_extra
from spem.report.figures import PALETTE, Picture
from spem.report.tables import Contents, TextCell, TextTable

with needs_extra("report"):
    from jinja2 import Environment, StrictUndefined


def render_html(contents: Contents, pictures: Sequence[Sequence[Picture]]) -> str:
    """Return the page: text, tables that sort, figures; for light and dark, small and wide screens.

    Args:
        contents: everything that it shows.
        pictures: of each group.
    """
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    source = (
        resources.files("spem.report").joinpath("templates", "report.html.j2").read_text("utf-8")
    )
    return environment.from_string(source).render(
        contents=contents,
        groups=list(zip(contents.groups, pictures, strict=True)),
        palette=PALETTE,
        sort_key=_sort_key,
        numeric_columns=_numeric_columns,
    )


def _numeric_columns(table: TextTable) -> list[int]:
    """Return the columns that are sorted by numbers, and those without anything to sort by."""
    columns = enumerate(zip(*table.rows, strict=True))
    return [place for place, cells in columns if not any(isinstance(c.sort, str) for c in cells)]


def _sort_key(cell: TextCell) -> str:
    """Return what the page's script sorts by; "" goes last."""
    return "" if cell.sort is None else str(cell.sort)
