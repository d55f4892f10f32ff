"""The looks of the figures: colours, markers and panels."""

import numpy as np
import pytest
from reports import cost, groups_of, kinds, record, rows_of, write

from spem.report.figures import PALETTE
from spem.report.figures.looks import OTHERS, colours, columns
from spem.report.figures.mixing import draw_depth, draw_epochs
from spem.report.figures.results import draw_cost, draw_curves, draw_seeds
from spem.report.tables import read_contents


def test_a_run_that_stopped_early_keeps_its_last_value_and_the_caption_says_so(tmp_path):
    records = [record("none", seed, 0.5 + seed / 10) for seed in range(2)]
    history = records[1]["history"]
    records[1]["history"] = {name: values[:2] for name, values in history.items()}
    records[1]["summary"]["stopped_early"] = True
    found = columns(records, "test_top1")
    assert found.shape == (2, len(history["epoch"]))
    assert (found[1, 2:] == history["test_top1"][1]).all()
    (group,) = groups_of(tmp_path, records)
    drawing = draw_curves(group)
    assert drawing is not None
    assert "stopped early keeps its last value" in drawing.caption


def test_of_many_rows_the_baseline_and_the_best_have_colours(tmp_path):
    (group,) = groups_of(tmp_path, rows_of(45))
    own = colours(group)
    assert [row for row in own if own[row] != OTHERS] == [
        "gate 0",
        *(f"gate {i}" for i in range(38, 45)),
    ]
    drawing = draw_curves(group)
    assert drawing is not None
    assert "the other 37 rows" in drawing.caption
    assert "37 others" in [t.get_text() for t in drawing.figure.legends[0].get_texts()]
    assert draw_seeds(group).figure.get_figheight() > 45 * 0.2


@pytest.mark.parametrize(
    ("method", "own"),
    [(None, {"spem", "mine"}), (["se pool=max"], {"se pool=max"}), (["eca"], {"eca"})],
)
def test_the_studys_own_method_has_a_colour_however_bad_it_is(tmp_path, method, own):
    """Without a method in the study it is SPEM, and whatever gates are not of this package."""
    records = [*rows_of(12), record("se", 0, 0.1, label="se pool=max", against="gate 0")]
    records += [record(gate, 0, 0.2, against="gate 0") for gate in ("spem", "mine", "eca")]
    for each in records[:24]:
        each["recipe"] |= {"gate": "se"}
    study = {"method": method} if method else None
    (group,) = read_contents(write(tmp_path, records, study=study)).groups
    shown = {row for row, colour in colours(group).items() if colour != OTHERS}
    assert own < shown
    assert "gate 0" in shown
    assert not {"se pool=max", "spem", "mine", "eca"} - own & shown


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009): linear RGB as seen without one of the three kinds of cones.
_SIGHTS = (
    np.eye(3),
    [
        [0.1523, 1.0526, -0.2049],
        [0.1145, 0.7863, 0.0992],
        [-0.0039, -0.0481, 1.052],
    ],
    [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
    [
        [1.2555, -0.0767, -0.1788],
        [-0.0784, 0.9308, 0.1476],
        [0.0047, 0.6914, 0.3039],
    ],
)


def seen(colour, sight):
    """The CIELAB coordinates of a colour."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    values = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8727]]
    xyz = np.array(to_xyz) @ np.clip(np.array(sight) @ values, 0, 1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("background", [0, 1])
@pytest.mark.parametrize("sight", _SIGHTS, ids=["all", "no red", "no green", "no blue"])
def test_the_colours_differ_for_colour_blind_readers(background, sight):
    """A difference of 2.3 is just noticeable; lines need several times that."""
    names = [name for name in PALETTE if name.startswith("series")]
    colours = [seen(PALETTE[name][background], sight) for name in [*names, "others"]]
    for i, one in enumerate(colours):
        assert all(np.linalg.norm(one - other) > 14 for other in colours[:i])


def test_rows_differ_without_colours(tmp_path):
    (group,) = groups_of(tmp_path, rows_of(8))
    drawing = draw_curves(group)
    assert drawing is not None
    assert len({(line.get_marker()) for line in drawing.figure.axes[0].lines}) == 8


@pytest.mark.parametrize("shown", [1, 2, 3, 4, 7])
def test_panels_leave_no_hole(tmp_path, shown):
    records = [record(f"gate {i}", 0, 0.9, gates=3) for i in range(shown)]
    (group,) = groups_of(tmp_path, records)
    drawing = draw_epochs(group)
    assert drawing is not None
    drawing.figure.draw_without_rendering()
    assert len(drawing.figure.axes) == min(shown, 4)
    lowest = drawing.figure.axes[-1].get_position()
    assert lowest.x1 == pytest.approx(
        max(a.get_position().x1 for a in drawing.figure.axes), abs=0.02
    )


def test_figures_that_stand_side_by_side_are_equally_high(tmp_path):
    costs = [cost("none", 300), cost("se", 200)]
    for epochs in (5, 40):
        records = [
            record(g, s, 0.9, gates=3, epochs=epochs) for g in ("none", "se") for s in (0, 1)
        ]
        (group,) = groups_of(tmp_path / str(epochs), records, costs)
        drawings = [draw(group) for draw in (draw_cost, draw_curves, draw_depth, draw_epochs)]
        assert len({each and each.figure.get_figheight() for each in drawings}) == 1


def test_constants_are_not_drawn(tmp_path):
    """Sizes that differ by a percent, a λ that no gate has moved, a single measured row."""
    records = [record(gate, 0, 0.9, gates=3) for gate in ("none", "spem")]
    records[1]["summary"]["parameters"] += 2000
    for each in records:
        each["history"] |= {key: [0.5] * 5 for key in each["history"] if key.startswith("mixing.")}
    (group,) = groups_of(tmp_path, records)
    assert kinds(group) == ["curves", "seeds"]
    (group,) = groups_of(tmp_path, records, [cost("none", 300)])
    assert draw_cost(group) is None
