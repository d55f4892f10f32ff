"""The figures of a comparison, as SVG: elements for its page, and whole files.

`figures` draws what the records of one model and one data set have results for: accuracy against
cost, learning curves, seeds, and the mixing ratios λ that gates have learned.
"""

from spem.report.figures.looks import drawing_style
from spem.report.figures.mixing import draw_depth, draw_epochs
from spem.report.figures.results import draw_cost, draw_curves, draw_seeds
from spem.report.figures.svg import PALETTE, Picture, is_picture, make_picture
from spem.report.tables import Group

__all__ = ["PALETTE", "Picture", "figures", "is_picture"]

_DRAW = (draw_cost, draw_curves, draw_depth, draw_epochs, draw_seeds)


def figures(group: Group) -> list[Picture]:
    """Draw what a group has results for; the same records give the same bytes.

    Args:
        group: the networks of one model and one data set.

    Returns:
        Accuracy against cost, learning curves, the mixing ratios λ over depth and over epochs, and
        seeds; without those that would show a constant. Nothing without finished runs.
    """
    if not group.rows:
        return []
    with drawing_style():
        drawn = [each for draw in _DRAW if (each := draw(group)) is not None]
        return [make_picture((group.model, group.data), each) for each in drawn]
