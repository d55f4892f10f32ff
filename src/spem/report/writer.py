"""`spem report`: the records of a comparison as one self-contained HTML page and as Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

from spem._extras import needs_extra
from spem._files import check_path, write_table, write_text
from spem._messages import printable, say
from spem.report.figures import PALETTE, Picture, figures, is_picture
from spem.report.tables import Contents, read_contents
from spem.report.values import list_values

with needs_extra("report"):
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def report(folder: str) -> None:
    """Write the page of a comparison: report.html, report.md and figures/ in its folder.

    The numbers of the page are written to report.csv, one row for each network.

    Figures of earlier reports that this one does not have are removed.

    The page needs no network. A comparison that is not finished has a page of what there is.

    Args:
        folder: of a comparison, with records.jsonl.
    """
    contents = read_contents(check_path("folder", folder))
    pictures = [figures(group) for group in contents.groups]
    place = Path(folder, "figures")
    place.mkdir(exist_ok=True)
    files = {f"{each.name}.svg": each.file_svg for own in pictures for each in own}
    for name, text in files.items():
        write_text(place / name, text)
    for path in place.glob("*.svg"):
        if path.name not in files and is_picture(path.read_text(errors="replace")):
            path.unlink()  # of an earlier report
    write_table(Path(folder, "report.csv"), list_values(contents))
    for ending in ("md", "html"):
        path = Path(folder, f"report.{ending}")
        write_text(path, render(contents, pictures, ending))
        say(str(path))


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
    return printable(template.render(contents=contents, groups=groups, palette=PALETTE))


def _escape_markdown(text: str) -> str:
    """Return a text in one line in which nothing is Markdown or HTML."""
    special = r"[\\`*|~$]|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])|\](?=\()|^[#>]"
    text = re.sub(special, r"\\\g<0>", " ".join(text.split()))
    return re.sub(r"&(?=[\w#]+;)", "&amp;", text)


def _fence(text: str, language: str) -> str:
    """Return a text as a block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
