"""`spem report`: the records of a comparison as one self-contained HTML page and as Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spem._extras import needs_extra
from spem._files import write_text
from spem.report.figures import PALETTE, Picture, figures
from spem.report.tables import Contents, TextCell, TextTable, read_contents

with needs_extra("report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

with needs_extra("train"):
    from rich import get_console


def report(folder: str) -> None:
    """Write the page of a comparison: report.html, report.md and figures/ in its folder.

    The page needs no network. A comparison that is not finished has a page of what there is.

    Args:
        folder: of a comparison, with records.jsonl.
    """
    contents = read_contents(Path(folder))
    pictures = [figures(group) for group in contents.groups]
    place = Path(folder, "figures")
    place.mkdir(exist_ok=True)
    for picture in (each for own in pictures for each in own):
        write_text(place / f"{picture.name}.svg", picture.file_svg)
    texts = {"md": render_markdown(contents, pictures), "html": render_html(contents, pictures)}
    for ending, text in texts.items():
        path = Path(folder, f"report.{ending}")
        write_text(path, text)
        get_console().print(str(path), soft_wrap=True, markup=False, highlight=False)


def render_html(contents: Contents, pictures: Sequence[Sequence[Picture]]) -> str:
    """Return the page: text, tables that sort, figures; for light and dark, small and wide screens.

    Args:
        contents: everything that it shows.
        pictures: of each group.
    """
    return _render("report.html.j2", contents, pictures)


def render_markdown(contents: Contents, pictures: Sequence[Sequence[Picture]]) -> str:
    """Return the report as Markdown.

    Args:
        contents: everything that it shows.
        pictures: of each group; the text refers to their files in `figures/`.
    """
    return _render("report.md.j2", contents, pictures)


def _render(template: str, contents: Contents, pictures: Sequence[Sequence[Picture]]) -> str:
    environment = Environment(
        loader=PackageLoader("spem.report"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"plain": _escape_markdown, "fenced": _fence}
    values: dict[str, Any] = {"palette": PALETTE, "sort_key": _sort_key}
    values |= {"numeric_columns": _numeric_columns}
    groups = list(zip(contents.groups, pictures, strict=True))
    return environment.get_template(template).render(contents=contents, groups=groups, **values)


def _numeric_columns(table: TextTable) -> list[int]:
    """Return the columns that are sorted by numbers, and those without anything to sort by."""
    columns = enumerate(zip(*table.rows, strict=True))
    return [place for place, cells in columns if not any(isinstance(c.sort, str) for c in cells)]


def _sort_key(cell: TextCell) -> str:
    """Return what the page's script sorts by; "" goes last."""
    return "" if cell.sort is None else str(cell.sort)


def _escape_markdown(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML."""
    text = re.sub(r"([\\`*|]|<(?=[A-Za-z/!?])|\](?=\()|^[#>])", r"\\\1", " ".join(text.split()))
    return re.sub(r"&(?=[\w#]+;)", "&amp;", text)


def _fence(text: str, language: str) -> str:
    """Return a text as a block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
