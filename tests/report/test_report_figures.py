import re
from xml.etree import ElementTree

import numpy as np
import pytest
from reports import SVG, comparison, cost, groups_of, kinds, record, rows_of, texts

from spem._messages import printable
from spem.report.figures import PALETTE, figures
from spem.report.figures.mixing import draw_depth, draw_epochs, stages
from spem.report.figures.results import draw_cost, draw_curves, draw_seeds


def test_a_group_is_drawn_as_far_as_it_has_results(tmp_path):
    learned, plain = ("curves", "depth", "epochs", "seeds"), ("curves", "seeds")
    first, second = groups_of(tmp_path / "learned", comparison(), [cost("none", 9), cost("se", 8)])
    assert tuple(kinds(first)) == ("cost", *learned)
    assert tuple(kinds(second)) == learned
    (group,) = groups_of(tmp_path / "plain", rows_of(2))
    assert tuple(kinds(group)) == plain


def test_the_same_records_give_the_same_bytes(tmp_path):
    (group,) = groups_of(tmp_path, comparison(groups=["cifar10"]))
    assert figures(group) == figures(group)


def test_names_do_not_collide(tmp_path):
    labels = [
        ("a-b", "c"),
        ("a", "b-c"),
        ("a b", "c"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("../a", "b"),
        ("a", "b"),
    ]
    records = [
        record("none", seed, 0.9, model=model, data=data)
        for seed, (model, data) in enumerate(labels)
    ]
    names = [
        picture.name for group in groups_of(tmp_path, records) for picture in figures(group)[:1]
    ]
    assert len(set(names)) == len(labels)
    assert all(re.fullmatch(r"\w[\w-]*", name) for name in names)
    assert names[-1] == "a-b-curves"


def test_figures_of_one_page_keep_apart_and_take_its_colours(tmp_path):
    drawn = [p for group in groups_of(tmp_path, comparison()) for p in figures(group)]
    names = [set(re.findall(r'\bid="([^"]+)"', picture.page_svg)) for picture in drawn]
    assert len(set.union(*names)) == sum(map(len, names)) > 0
    for picture, own in zip(drawn, names, strict=True):
        page = picture.page_svg
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) == own
        assert not any(light in page for light, _ in PALETTE.values())
        assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= PALETTE.keys()
        assert "<style" not in page
        assert ElementTree.fromstring(page).get("aria-label", "").startswith(picture.title)


def test_files_bring_their_background_and_colours(tmp_path):
    (group,) = groups_of(tmp_path, comparison(groups=["cifar10"]))
    for picture in figures(group):
        root = ElementTree.fromstring(picture.file_svg)
        assert (root[0].tag, root[0].get("fill")) == (f"{SVG}rect", "white")
        assert root.get("width")
        assert "var(" not in picture.file_svg
        assert PALETTE["ink"][0] in picture.file_svg


@pytest.mark.parametrize(
    "label", ["<b>a & b</b>", "$x$ and $y$", "_hidden", "门控 🙂", "a[b]", "a|b", "a\x1b[31m\udcff"]
)
def test_a_label_is_shown_as_it_is(tmp_path, label):
    records = [record(g, s, 0.9, label=g, gates=3) for g in ("none", label) for s in range(2)]
    (group,) = groups_of(tmp_path, records)
    for picture in figures(group):
        assert printable(label) in texts(picture.page_svg), picture.title


def test_the_cost_is_what_was_measured(tmp_path):
    costs = [cost("none", 300), cost("spem", 200)]
    records = [r for r in comparison(groups=["cifar10"]) if r["gate"] in ("none", "spem")]
    (group,) = groups_of(tmp_path, records, costs)
    drawing = draw_cost(group)
    assert drawing is not None
    (axes,) = drawing.figure.axes
    found = [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in axes.containers]
    assert found == [(1.0, group.accuracy["none"].mean), (1.5, group.accuracy["spem"].mean)]
    across, up = axes.containers[1][2]
    np.testing.assert_allclose(across.get_segments()[0][:, 0], [1.35, 1.65])
    spem = group.accuracy["spem"]
    np.testing.assert_allclose(up.get_segments()[0][:, 1], [spem.low, spem.high])
    assert axes.get_xlabel() == "training time, as a multiple of none"


def test_what_was_not_measured_is_named(tmp_path):
    costs = [cost("none", 300), cost("se", 200)]
    (group,) = groups_of(tmp_path, comparison(groups=["cifar10"]), costs)
    drawing = draw_cost(group)
    assert drawing is not None
    assert "not drawn: eca, spem." in drawing.caption


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("macs", "multiply-adds of an image, millions"),
        ("parameters", "parameters, millions"),
    ],
)
def test_without_measurements_the_cost_is_what_differs_most(tmp_path, key, label):
    records = [record("none", 0, 0.9), record("spem", 0, 0.9)]
    for each, factor in (("macs", 1.001), ("parameters", 1.001), (key, 1.1)):
        records[1]["summary"][each] = round(records[0]["summary"][each] * factor)
    (group,) = groups_of(tmp_path, records)
    drawing = draw_cost(group)
    assert drawing is not None
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == label
    found = [bars[0].get_xdata()[0] * 1e6 for bars in axes.containers]
    assert found == pytest.approx([each["summary"][key] for each in records])
    assert "No times were measured" in drawing.caption


def test_curves_are_means_with_bands(tmp_path):
    (group,) = groups_of(tmp_path, [record("none", s, a) for s, a in enumerate((0.8, 0.84, 0.88))])
    drawing = draw_curves(group)
    assert drawing is not None
    (axes,) = drawing.figure.axes
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(line.get_ydata()[-1], 84)
    ends = [y for x, y in band.get_paths()[0].vertices if x == 5]
    assert (min(ends), max(ends)) == pytest.approx((80, 88))


def test_the_last_quarter_of_long_curves_is_drawn_again(tmp_path):
    records = [record("none", 0, 0.9, epochs=40), record("short", 0, 0.9, epochs=5)]
    (group,) = groups_of(tmp_path, records)
    drawing = draw_curves(group)
    assert drawing is not None
    whole, last = drawing.figure.axes
    assert [len(line.get_xdata()) for line in whole.lines] == [40, 5]
    assert list(last.lines[0].get_xdata()) == list(range(31, 41))


def test_strips_show_every_seed_mean_and_interval(tmp_path):
    (group,) = groups_of(tmp_path, comparison(seeds=5, groups=["cifar10"]))
    (axes,) = draw_seeds(group).figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    for (row, records), line, bars in zip(group.rows.items(), dots, axes.containers, strict=True):
        expected = [100 * each["summary"]["final_test_top1"] for each in records]
        assert list(line.get_xdata()) == expected
        ends = bars[2][0].get_segments()[0][:, 0]
        summary = group.accuracy[row]
        np.testing.assert_allclose(ends, [summary.low, summary.high])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(group.rows)


def test_one_seed_and_one_epoch_are_enough(tmp_path):
    records = [record(gate, 0, 0.9, gates=2, epochs=1) for gate in ("none", "spem")]
    (group,) = groups_of(tmp_path, records)
    assert kinds(group) == ["depth", "seeds"]  # of one epoch there are no curves
    assert all(bars[2] == () for bars in draw_seeds(group).figure.axes[0].containers)


def test_a_huge_interval_does_not_hide_the_seeds(tmp_path):
    records = [record(gate, s, 0.9 + s / 100) for gate in ("none", "spem") for s in range(2)]
    (group,) = groups_of(tmp_path, records)
    drawing = draw_seeds(group)
    low, high = drawing.figure.axes[0].get_xlim()
    interval = group.accuracy["none"]
    assert interval.low < 85 < low < 90 < 91 < high < 95 < interval.high
    assert "beyond the frame" in drawing.caption
    (calm,) = groups_of(tmp_path / "calm", comparison(seeds=9, groups=["cifar10"]))
    assert "beyond the frame" not in draw_seeds(calm).caption


def test_mixing_ratios_over_depth_and_epochs(tmp_path):
    (group,) = groups_of(tmp_path, comparison(seeds=2, groups=["cifar10"]))
    histories = [each["history"] for each in group.rows["spem"]]
    names = [name for name in histories[0] if name.startswith("mixing.")]
    final = np.mean([[history[name][-1] for name in names] for history in histories], 0)
    depth, epochs = draw_depth(group), draw_epochs(group)
    assert depth is not None
    assert epochs is not None
    np.testing.assert_allclose(depth.figure.axes[0].lines[0].get_ydata(), final)
    thin = [line for line in epochs.figure.axes[0].lines if line.get_linewidth() < 1]
    np.testing.assert_allclose([line.get_ydata()[-1] for line in thin], final)
    thick = [line for line in epochs.figure.axes[0].lines if line.get_linewidth() > 1]
    assert [line.get_ydata()[-1] for line in thick] == pytest.approx(
        [final[places].mean() for places in np.split(np.arange(9), 3)]
    )


def test_gates_stand_at_the_same_depth_and_colour_in_every_row(tmp_path):
    some = record("some", 0, 0.9, gates=3)
    del some["history"]["mixing.layer1.0.bn2.gate"]
    (group,) = groups_of(tmp_path, [some, record("none", 0, 0.9, gates=3)])
    depth, epochs = draw_depth(group), draw_epochs(group)
    assert depth is not None
    assert epochs is not None
    assert list(depth.figure.axes[0].lines[0].get_xdata()) == [2, 3]
    own = [
        {line.get_color() for line in axes.lines if line.get_linewidth() > 1}
        for axes in epochs.figure.axes
    ]
    assert len(own[0]) == 2
    assert len(own[1]) == 3
    assert own[0] < own[1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["layer1.0.gate", "layer1.1.gate", "layer2.0.gate"], {"layer1": [0, 1], "layer2": [2]}),
        (["blocks.0.0.gate", "blocks.1.0.gate"], {"blocks.0": [0], "blocks.1": [1]}),
        (
            [f"features.{i}.gate" for i in range(8)],
            {f"gates {i}–{i + 1}": [i - 1, i] for i in (1, 3, 5, 7)},
        ),
        (["gate"], {"gate 1": [0]}),
    ],
)
def test_stages_of_networks(names, expected):
    assert stages(names) == expected
