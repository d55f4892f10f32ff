"""From a drawing to SVG: an element in the colours of its page, and a file."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple
from xml.etree import ElementTree
from zlib import crc32

from spem._extras import needs_extra
from spem._messages import printable

with needs_extra("report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

# Name of a colour on the page, and its values on a light and on a dark background. The series were
# searched for colours that differ for every kind of colour blindness, the first ones most.
PALETTE = {
    "series-1": ("#1694e3", "#77acfd"),
    "series-2": ("#8f4907", "#bc6d33"),
    "series-3": ("#275f44", "#23ee80"),
    "series-4": ("#9424f8", "#a93be7"),
    "series-5": ("#a0920a", "#d8cb31"),
    "series-6": ("#e20d6f", "#e21d60"),
    "series-7": ("#1074a4", "#097da1"),
    "series-8": ("#ba894f", "#bd9513"),
    "others": ("#868d96", "#858c95"),
    "grid": ("#dfe3e8", "#363c44"),
    "ink": ("#23272e", "#e4e7eb"),
}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r'(?:url\(|href=")#([^")]+)')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")  # a hundredth of a unit is not seen
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _LINK)


class Drawing(NamedTuple):
    """A figure that is drawn, and what is said of it."""

    kind: str
    title: str
    caption: str
    figure: Figure


class Picture(NamedTuple):
    """One figure.

    Attributes:
        name: of its file, without the ending.
        title: a few words.
        caption: what is drawn, in sentences.
        page_svg: an element for an HTML page that defines the colours of `PALETTE`.
        file_svg: a whole file with a white background.
    """

    name: str
    title: str
    caption: str
    page_svg: str
    file_svg: str


def make_picture(labels: Sequence[str], drawing: Drawing) -> Picture:
    """Return a drawing as SVG; the same drawing gives the same bytes.

    Args:
        labels: model and data, of which the name is made.
        drawing: the figure.
    """
    name = _file_name([*labels, drawing.kind])
    text = StringIO()
    # The salt keeps the names inside one figure from those in another on the same page.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.figure.savefig(text, format="svg", transparent=True, metadata=empty)
    root = _parse_shortened(printable(text.getvalue()))
    root.set("role", "img")
    root.set("aria-label", f"{drawing.title}: {', '.join(map(printable, labels))}")
    background = ElementTree.Element(f"{{{_SVG}}}rect", width="100%", height="100%", fill="white")
    root.insert(0, background)
    file_svg = ElementTree.tostring(root, encoding="unicode") + "\n"
    root.remove(background)
    _adapt_to_page(root)
    page_svg = ElementTree.tostring(root, encoding="unicode")
    return Picture(name, drawing.title, drawing.caption, page_svg, file_svg)


def is_picture(text: str) -> bool:
    """Return whether the text of an SVG file is one that `make_picture` returned."""
    return 'role="img" aria-label="' in text[:1000]


def _file_name(labels: Sequence[str]) -> str:
    """Return the labels as a file name; those that lose letters are told apart by a checksum."""
    name = "-".join(re.sub(r"\W+", "-", label, flags=re.ASCII).strip("-") for label in labels)
    if all(re.fullmatch(r"\w+", label, re.ASCII) for label in labels):
        return name
    return f"{name}-{crc32(repr(labels).encode()):08x}"


def _parse_shortened(text: str) -> ElementTree.Element:
    """Return the root without metadata, rules for a whole page, and names nobody refers to."""
    root = ElementTree.fromstring(text)
    used = set(_REFERENCE.findall(text))
    for parent in list(root.iter()):
        for child in parent.findall("./{*}metadata") + parent.findall("./{*}style"):
            parent.remove(child)
        if parent.get("id") not in used:
            parent.attrib.pop("id", None)
        if path := parent.get("d"):
            parent.set("d", _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", path))
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return root


def _adapt_to_page(root: ElementTree.Element) -> None:
    """Give an element the colours and the width of the page that it stands in."""
    variables = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", re.sub("#[0-9a-f]{6}", lambda m: variables.get(m[0], m[0]), style))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
