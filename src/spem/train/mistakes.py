"""The most confident mistakes of a network as a page with their images."""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

from torch import Tensor

from spem._files import write_text
from spem._messages import printable
from spem.data.sheet import to_pillow
from spem.data.splits import Dataset

_SHOWN = 100

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: mistakes</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.4 system-ui, sans-serif; margin: 1rem auto; max-width: 1200px;
    padding: 0 1rem; }}
  h1 {{ font-size: 1.4rem; }}
  main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }}
  figure {{ margin: 0; }}
  img {{ image-rendering: {rendering}; width: 100%; }}
  figcaption {{ font-size: .85rem; overflow-wrap: anywhere; }}
  small {{ opacity: .75; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<main>
{figures}
</main>
</html>
"""
_FIGURE = """<figure>
  <img src="data:image/png;base64,{image}" alt="{name}">
  <figcaption><b>{predicted}</b> ({confidence:.0%}), but it is <b>{label}</b><br>
  <small>{name}</small></figcaption>
</figure>"""


def write_mistakes(
    path: Path,
    dataset: Dataset,
    labels: Tensor,
    predicted: Tensor,
    confidence: Tensor,
    title: str,
) -> None:
    """Write one HTML page with the mistakes of which the network is surest, the surest first.

    The page holds the images, as the network got them, and needs no other file.

    Args:
        path: the page.
        dataset: the images are those of its test split.
        labels: of the images, (N,).
        predicted: class of each image with the largest probability, (N,).
        confidence: its probability, (N,).
        title: names the network and the data.
    """
    wrong = (predicted != labels).nonzero()[:, 0]
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_SHOWN].tolist()
    figures = [
        _FIGURE.format(
            image=_encode(dataset.test.images[row]),
            name=_escape(_name(dataset, row)),
            predicted=_escape(dataset.classes[int(predicted[row])]),
            label=_escape(dataset.classes[int(labels[row])]),
            confidence=confidence[row].item(),
        )
        for row in shown
    ]
    summary = f"{len(wrong):,} of {len(labels):,} test images are classified wrongly."
    if shown:
        summary += (
            f" Below are the {len(shown):,} of which the network is surest, the surest first."
        )
    small = dataset.test.images.shape[3] < 100  # shown larger than it is: show its pixels
    looks = {"rendering": "pixelated" if small else "auto", "figures": "\n".join(figures)}
    write_text(path, _PAGE.format(title=_escape(title), summary=summary, **looks))


def _name(dataset: Dataset, row: int) -> str:
    """Return the file of a test image, or its number, counted from 0, where it has none."""
    return f"test image {row}" if dataset.folder is None else str(dataset.folder.files["test"][row])


def _escape(text: str) -> str:
    return escape(printable(text))


def _encode(image: Tensor) -> str:
    """Return an image as a PNG file in base64."""
    file = BytesIO()
    to_pillow(image).save(file, format="PNG")
    return b64encode(file.getvalue()).decode()
