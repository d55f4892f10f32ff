"""`spem report`: the records of a comparison as one self-contained HTML page and as Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from spem._extras import needs_extra
from spem._files import write_text
from spem.report.figures import PALETTE, Picture, figures
from spem.report.tables import Contents, read_contents

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
    for ending in ("md", "html"):
        path = Path(folder, f"report.{ending}")
        write_text(path, render(contents, pictures, ending))
        get_console().print(str(path), soft_wrap=True, markup=False, highlight=False)


def render(contents: Contents, pictures: Sequence[Sequence[Picture]], ending: str) -> str:
    """Return the report as Markdown, or as a page.

    The page has text, tables that sort and figures, for light and dark, small and wide screens. The
    Markdown refers to the files of the pictures in `figures/`.

    Args:
        contents: everything that it shows.
        pictures: of each group.
        ending: md or html.
    """
    environment = Environment(
        loader=PackageLoader("spem.report"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"plain": _escape_markdown, "fenced": _fence}
    groups = list(zip(contents.groups, pictures, strict=True))
    template = environment.get_template(f"report.{ending}.j2")
    return template.render(contents=contents, groups=groups, palette=PALETTE)


def _escape_markdown(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML."""
    text = re.sub(r"([\\`*|]|<(?=[A-Za-z/!?])|\](?=\()|^[#>])", r"\\\1", " ".join(text.split()))
    return re.sub(r"&(?=[\w#]+;)", "&amp;", text)


def _fence(text: str, language: str) -> str:
    """Return a text as a block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
