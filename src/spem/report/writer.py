"""`spem report`: the records of a comparison as one HTML page, and as Markdown."""

import re
from importlib import resources
from pathlib import Path

from spem._extras import needs_extra
from spem._files import write_text
from spem.report.figures import Picture, figures
from spem.report.page import render_html
from spem.report.tables import Contents, read_contents

with needs_extra("report"):
    from jinja2 import Environment, StrictUndefined

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


def render_markdown(contents: Contents, pictures: list[list[Picture]]) -> str:
    """Return the report as Markdown.

    Args:
        contents: of a folder.
        pictures: of each group; the text refers to their files in `figures/`.
    """
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {"plain": _plain, "fenced": _fenced}
    template = (
        resources.files("spem.report").joinpath("templates", "report.md.j2").read_text("utf-8")
    )
    drawn = list(zip(contents.groups, pictures, strict=True))
    return environment.from_string(template).render(contents=contents, drawn=drawn)


def _plain(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML."""
    text = re.sub(r"([\\`*|]|<(?=[A-Za-z/!?])|\](?=\()|^[#>])", r"\\\1", " ".join(text.split()))
    return re.sub(r"&(?=[\w#]+;)", "&amp;", text)


def _fenced(text: str, language: str) -> str:
    """Return a text as a block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
