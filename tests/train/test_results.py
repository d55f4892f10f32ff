"""The table and the curves of a run."""

import csv

import pytest
from matplotlib.figure import Figure

from spem._files import write_table
from spem.train import results


def test_tables_and_curves(tmp_path):
    splits = ("train", "validation", "test")
    rows: list[dict] = [{"epoch": epoch, "top5": None} for epoch in range(2)]
    for row in rows:
        row |= {f"{split}_{key}": 0.5 for split in splits for key in ("loss", "top1")}
        row |= {"validation_loss": None, "validation_top1": None}
    write_table(tmp_path / "metrics.csv", rows)
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["0", "1"]
    assert table[0]["top5"] == table[0]["validation_loss"] == ""
    results.draw_curves(tmp_path / "curves.png", rows, "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def draw(tmp_path, monkeypatch, losses, title="title", validation=True):
    """The axes and the title of the curves of a run, whose second epoch is the best."""
    made = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: made.append(self))
    rows = [{"epoch": epoch, "top5": None} for epoch in range(len(losses))]
    for row, loss in zip(rows, losses, strict=True):
        for split in ("train", "validation", "test"):
            known = split != "validation" or validation
            accuracy = 0.9 if row["epoch"] == 1 else 0.5
            row |= {f"{split}_loss": loss if known else None}
            row |= {f"{split}_top1": accuracy if known else None}
    results.draw_curves(tmp_path / "curves.png", rows, title)
    (figure,) = made
    return figure


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([2.0, 0.021, 1.0], "linear"), ([2.0, 0.019, 1.0], "log"), ([2.0, 0.0, 1.0], "linear")],
)
def test_losses_have_a_linear_axis_unless_they_span_two_decades(
    tmp_path, monkeypatch, losses, scale
):
    upper, lower = draw(tmp_path, monkeypatch, losses).axes
    assert (upper.get_yscale(), lower.get_yscale()) == (scale, "linear")


def test_epochs_count_from_one_and_the_best_is_marked(tmp_path, monkeypatch):
    figure = draw(tmp_path, monkeypatch, [2.0, 1.0, 1.5])
    for axes in figure.axes:
        *splits, mark = [line for line in axes.lines if len(line.get_xdata())]
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in splits)
        assert list(mark.get_xdata()) == [2, 2]
    assert list(figure.axes[1].lines[0].get_ydata()) == [50, 90, 50]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["train", "validation", "test", "best epoch by validation: 2"]
    markers = [line.get_marker() for line in figure.axes[0].lines[:3]]
    assert len(set(markers)) == 3
    alone = draw(tmp_path, monkeypatch, [2.0, 1.0, 1.5], validation=False)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["train", "test"]


@pytest.mark.parametrize("title", ["a[b]", "$x$", "$x", "<b>", "a|b"])
def test_a_folders_name_is_the_title_as_it_is(tmp_path, monkeypatch, title):
    figure = draw(tmp_path, monkeypatch, [2.0, 1.0], title)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == title
    assert not figure._suptitle.get_parse_math()
