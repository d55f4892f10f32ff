"""What `spem evaluate` finds in detail, and the files that it writes."""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support
from torch import nn

from spem.data.batches import Batches, Split
from spem.data.splits import Dataset, FolderFacts
from spem.train.assessment import assess, write_assessment
from spem.train.confusion import draw_confusion, worst_confusions
from spem.train.metrics import evaluate
from spem.train.mistakes import write_mistakes


def split(classes, images=300):
    """Images whose pixels are the logits of their classes; some labels are wrong on purpose."""
    logits = torch.randint(0, 256, (images, 1, 1, classes), dtype=torch.uint8)
    labels = logits.flatten(1).int().argmax(1)
    wrong = torch.rand(images) < 0.3
    labels[wrong] = torch.randint(0, classes, (int(wrong.sum()),))
    return Split(logits, labels)


@pytest.mark.parametrize("classes", [2, 7])
def test_the_figures_are_those_of_scikit_learn(classes):
    own = split(classes)
    found = assess(nn.Flatten(), Batches(own), tuple("abcdefg"[:classes]))
    predicted = own.images.flatten(1).int().argmax(1)
    assert found.figures.items() >= evaluate(nn.Flatten(), Batches(own)).items()
    assert (found.figures["top5"] is None) == (classes == 2)
    balanced = balanced_accuracy_score(own.labels, predicted)
    assert found.figures["balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)
    columns = precision_recall_fscore_support(own.labels, predicted)
    for key, expected in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert [row[key] for row in found.per_class] == pytest.approx(expected, abs=1e-6)
    assert [row["class"] for row in found.per_class] == [*"abcdefg"[:classes]]
    assert torch.equal(found.labels, own.labels)
    assert torch.equal(found.predicted, predicted)


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy():
    own = split(4, 2000)
    found = assess(nn.Flatten(), Batches(own), tuple("abcd"))
    confidence, predicted = own.images.flatten(1).div(255).sub(0.5).div(0.5).softmax(1).max(1)
    assert torch.allclose(found.confidence, confidence)
    hits = (predicted == own.labels).float()
    bins = (confidence * 15).ceil()
    parts = [bins == number for number in range(1, 16)]
    parts = [(confidence[p].mean() - hits[p].mean()).abs() * p.sum() for p in parts if p.any()]
    assert found.figures["calibration_error"] == pytest.approx(sum(parts).item() / 2000, abs=1e-4)


@pytest.mark.parametrize("measure", [evaluate, lambda *args: assess(*args, tuple("abcdefg"))])
def test_memory_does_not_grow_with_the_number_of_images(measure):
    alive, most = WeakSet(), []

    class Watched(nn.Flatten):
        def forward(self, x):
            logits = super().forward(x) + 0
            alive.add(logits)
            most.append(len(alive))
            return logits

    measure(Watched(), Batches(split(7, 3000), 100))
    assert len(most) == 30
    assert max(most) <= 3


def test_a_class_without_images_does_not_count_in_the_balanced_accuracy():
    own = Split(torch.tensor([[[[9, 0, 0]]], [[[0, 9, 0]]]]).byte(), torch.tensor([0, 1]))
    assert assess(nn.Flatten(), Batches(own), tuple("abc")).figures["balanced_accuracy"] == 1


def answers(matrix):
    """Labels and predicted classes of as many images as a confusion matrix has."""
    rows, columns = matrix.nonzero().unbind(1)
    counts = matrix[rows, columns]
    return rows.repeat_interleave(counts), columns.repeat_interleave(counts)


def test_the_worst_confusions_come_first():
    own = answers(torch.tensor([[8, 2, 0], [5, 90, 5], [1, 0, 1]]))
    worst = [tuple(each) for each in worst_confusions(*own, 3)]
    assert worst == [(2, 0, 1, 0.5), (0, 1, 2, 0.2), (1, 0, 5, 0.05)]
    assert len(worst_confusions(*own, 10)) == 4
    assert worst_confusions(torch.arange(3), torch.arange(3), 10) == []


@pytest.mark.parametrize("classes", [2, 30, 130])
def test_a_confusion_matrix_is_drawn_for_few_and_many_classes(tmp_path, classes):
    matrix = torch.randint(0, 3, (classes, classes)) + 50 * torch.eye(classes).long()
    names = [f"<{n}> $a$ $b {'long ' * (n % 9)}" for n in range(classes)]
    draw_confusion(tmp_path / "x.png", *answers(matrix), names, "title")
    with Image.open(tmp_path / "x.png") as image:
        assert image.height > 500


@dataclass
class Written:
    folder: Path
    page: str


@pytest.fixture
def written(tmp_path):
    """Three images, one right and two wrong; class names that are HTML."""
    images = torch.tensor([[[[9, 0]]], [[[9, 8]]], [[[0, 9]]]]).byte().expand(-1, 3, -1, -1)
    own = Split(images, torch.tensor([0, 1, 0]))
    files = {"test": [Path(f"test/<i>{n}.png") for n in range(3)]}
    facts = FolderFacts("", (), (), (), files)
    data = Dataset("data & more", own, None, own, ("<b>cat</b>", 'dog"'), facts)
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 2)), Mean())
    found = assess(model, Batches(own), data.classes)
    write_assessment(tmp_path / "new", found, data, "run <x>")
    return Written(tmp_path / "new", (tmp_path / "new" / "mistakes.html").read_text())


class Mean(nn.Module):
    def forward(self, x):
        return 300 * x.mean(1)


def test_the_mistakes_are_on_one_page_the_surest_first(written):
    assert [path.name for path in sorted(written.folder.iterdir())] == [
        *("confusion.png", "mistakes.html", "per_class.csv")
    ]
    assert re.findall(r'alt="(.*?)"', written.page) == [
        "test/&lt;i&gt;2.png",
        "test/&lt;i&gt;1.png",
    ]
    assert written.page.count("data:image/png;base64,") == 2
    assert "2 of 3 test images" in written.page


def test_names_on_the_page_are_escaped(written):
    assert "<b>&lt;b&gt;cat&lt;/b&gt;</b>" in written.page
    assert "dog&quot;" in written.page
    assert "run &lt;x&gt;" in written.page
    assert "<b>cat" not in written.page
    assert not re.search(r'(src|href)="(?!data:)', written.page)


def test_the_table_of_the_classes(written):
    with (written.folder / "per_class.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["class"] for row in found] == ["<b>cat</b>", 'dog"']
    assert [float(row["recall"]) for row in found] == [0.5, 0]


def test_a_page_without_mistakes_says_so(tmp_path):
    own = Split(torch.zeros(2, 1, 1, 2, dtype=torch.uint8), torch.tensor([0, 1]))
    data = Dataset("digits", own, None, own, ("a", "b"))
    write_mistakes(tmp_path / "x.html", data, own.labels, own.labels, torch.ones(2), "title")
    assert "0 of 2 test images are classified wrongly." in (tmp_path / "x.html").read_text()


def test_names_that_are_not_utf8_are_drawn_with_question_marks(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    own = answers(torch.ones(2, 2).long())
    draw_confusion(tmp_path / "x.png", *own, [name, "b"], f"a run on {name}")
    assert (tmp_path / "x.png").exists()
