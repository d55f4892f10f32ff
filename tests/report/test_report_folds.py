"""A comparison of folds: every word of its page is of folds, and the test is the corrected one."""

import csv
import json
import math
import random
import statistics
from collections import Counter

import pytest
from reports import record, texts, write
from scipy import stats

from spem.report import report
from spem.report.figures import figures
from spem.report.tables import read_contents
from spem.report.tables.mistakes import _Counted, _note_answers

FOLDS = 5


def fold_records(folds=FOLDS):
    """Records of two networks in five folds of 40 images; the second learns λ."""
    draw = random.Random(1)
    found = []
    for fold in range(1, folds + 1):
        for gate, level in (("none", 0.8), ("spem", 0.86)):
            accuracy = round(level + draw.gauss(0, 0.01), 4)
            own = record(gate, 0, accuracy, data="photographs", gates=9 * (gate == "spem"))
            own["recipe"] |= {"folds": folds, "fold": fold}
            own["summary"]["images"] = {"train": 144, "validation": 16, "test": 40}
            found.append(own | {"key": f"{gate}-{fold}"})
    return found


def test_the_page_the_table_and_the_figures_speak_of_folds(tmp_path):
    write(tmp_path, fold_records())
    report(str(tmp_path))
    for name in ("report.md", "report.html", "report.csv"):
        text = (tmp_path / name).read_text()
        assert "fold" in text
        assert "seed" not in text.lower(), name
    assert "share training images" in (tmp_path / "report.md").read_text()
    (group,) = read_contents(tmp_path).groups
    drawn = figures(group)
    assert drawn[-1].name.endswith("-folds")
    assert not any("seed" in text for each in drawn for text in texts(each.file_svg))
    assert "one fold each" in drawn[-1].caption


def test_the_numbers_are_those_of_the_published_formula(tmp_path):
    records = fold_records()
    report(str(write(tmp_path, records)))
    with (tmp_path / "report.csv").open() as file:
        plain, spem = csv.DictReader(file)
    tops = [100 * each["summary"]["final_test_top1"] for each in records]
    differences = [b - a for a, b in zip(tops[::2], tops[1::2], strict=True)]
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    error = deviation * math.sqrt(1 / FOLDS + 40 / 144)
    assert float(spem["difference"]) == pytest.approx(mean, abs=1e-5)
    assert float(spem["p"]) == pytest.approx(2 * stats.t.sf(mean / error, FOLDS - 1), abs=1e-5)
    assert float(spem["difference_low"]) == pytest.approx(mean - 2.776445 * error, abs=1e-4)
    assert spem["test"] == "corrected resampled t-test"
    assert spem["runs_are"] == "folds that share training images"
    assert (plain["verdict"], plain["p"], plain["n"]) == ("baseline", "", "5")
    (group,) = read_contents(tmp_path).groups
    assert "p (corrected resampled t, Holm)" in group.table.header
    assert "p (Wilcoxon)" not in group.table.header
    assert group.table.notes == [
        "A fold tests 40 images and trains on 144: the variance of a mean over n folds is taken as"
        " that of the folds times 1/n + 0.278."
    ]


def test_folds_that_failed_are_named(tmp_path):
    first, *others = fold_records()
    failed = first | {"summary": None, "history": None, "error": "the loss is not finite"}
    found = read_contents(write(tmp_path, [failed, *others]))
    assert "Failed: none, resnet20, photographs, fold 1 of 5: the loss is not finite" in found.notes
    assert found.groups[0].compared["spem"].difference.n == 4


def test_mistakes_are_summed_over_the_folds(tmp_path):
    records = fold_records(2)
    write(tmp_path, records)
    lines = [
        {"key": "none-1", "classes": ["ant", "<bee>"], "images": [10, 5], "confused": [[0, 1, 3]]},
        {"key": "none-2", "classes": ["ant", "<bee>"], "images": [10, 5], "confused": [[1, 0, 1]]},
        {"key": "spem-1", "classes": ["ant", "<bee>"], "images": [10, 5], "confused": []},
    ]
    (tmp_path / "mistakes.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (group,) = read_contents(tmp_path).groups
    confusions, classes = group.mistakes.values()
    assert confusions.header == ["class", "taken for", "none", "spem"]
    assert [[cell.text for cell in row] for row in confusions.rows] == [
        ["ant", "<bee>", "3 (15.0%)", "0 (0.0%)"],
        ["<bee>", "ant", "1 (10.0%)", "0 (0.0%)"],
    ]
    assert [[cell.text for cell in row] for row in classes.rows] == [
        ["ant", "85.0", "100.0"],
        ["<bee>", "90.0", "100.0"],
    ]
    report(str(tmp_path))
    assert "&lt;bee&gt;" in (tmp_path / "report.html").read_text()
    assert "### Most frequent mistakes" in (tmp_path / "report.md").read_text()


def test_seeds_and_folds_do_not_stand_in_one_table(tmp_path):
    write(tmp_path, [*fold_records(), record("none", 0, 0.9, data="photographs")])
    with pytest.raises(ValueError, match="records of seeds and of folds, or of several numbers"):
        read_contents(tmp_path)


def test_a_network_that_answers_alike_is_named_beside_the_largest_class():
    images = Counter({0: 70, 1: 20, 2: 10})
    lazy = Counter({(1, 0): 20, (2, 0): 9})
    counted = {"lazy": _Counted(images, lazy), "se": _Counted(images, Counter({(0, 1): 30}))}
    assert _note_answers(counted, ["oak", "elm", "ash"]) == [
        "Whoever always answers oak gets 70.0% of the images right.",
        "lazy answers oak for 99.0% of the images: it has learned next to nothing.",
    ]
