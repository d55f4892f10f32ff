"""Folds: equal parts of the images, each of which is the test split of one run."""

import pytest
import torch
from pictures import paint
from test_dataset import rows, share

from spem.data.dataset import load_dataset
from spem.data.describe import describe


@pytest.fixture
def photographs(tmp_path):
    """Twelve dark and seven light images, all different."""
    for number in range(12):
        paint(tmp_path / "photographs" / "dark" / f"{number}.png", number)
    for number in range(7):
        paint(tmp_path / "photographs" / "light" / f"{number}.png", 200 + number)
    return tmp_path / "photographs"


@pytest.mark.parametrize("folds", [2, 5])
def test_every_image_is_in_the_test_split_of_one_fold(photographs, folds):
    parts = [
        load_dataset(str(photographs), validation=0.2, folds=folds, fold=fold, seed=3)
        for fold in range(1, folds + 1)
    ]
    tested = [file for part in parts for file in part.folder.files["test"]]
    assert len(tested) == 19
    assert set(tested) == {*photographs.glob("*/*.png")}
    for part in parts:
        splits = [rows(split) for split in (part.train, part.validation, part.test)]
        # What training, validation and test hold differs: no choice sees the test images.
        assert len(set.union(*splits)) == sum(map(len, splits)) == 19
        dark, light = part.test.labels.bincount().tolist()
        assert dark in (12 // folds, -(-12 // folds))
        assert light in (7 // folds, -(-7 // folds))


def test_the_folds_follow_from_the_seed_alone(photographs):
    def load(seed, validation=0.2, **keys):
        options = {"seed": seed, "validation": validation, "folds": 3, "fold": 2}
        return load_dataset(str(photographs), **options | keys).folder.files["test"]

    assert load(0) == load(0, validation=None, image_size=4, on_bad_image="skip")
    assert load(0) != load(1)


def test_the_digits_are_one_pool():
    parts = [load_dataset("digits", validation=None, folds=4, fold=fold) for fold in (1, 2, 3, 4)]
    assert sum(len(part.test.labels) for part in parts) == 1797
    assert all(len(part.train.labels) + len(part.test.labels) == 1797 for part in parts)
    assert all((share(part.test) - share(part.train)).abs().max() < 0.01 for part in parts)


def test_test_images_of_a_folders_own_are_left_alone(tmp_path):
    for part, number in (("train", 6), ("val", 2), ("test", 3)):
        for index in range(number):
            paint(tmp_path / part / "a" / f"{index}.png", index)
            paint(tmp_path / part / "b" / f"{index}.png", 100 + index)
    data = load_dataset(str(tmp_path), folds=3, fold=1)
    used = [file for files in data.folder.files.values() for file in files]
    assert {file.parts[-3] for file in used} == {"train", "val"}
    assert {file.parts[-3] for file in data.folder.files["validation"]} == {"val"}
    assert len(data.test.labels) == 4
    assert "layout: train/ in 3 folds; fold 1 is the test split; val/ is for validation" in (
        lines := describe(data)
    )
    assert "not used: test/" in lines


def test_the_layout_says_which_fold(photographs):
    assert describe(load_dataset(str(photographs), folds=5, fold=2))[1] == (
        "layout: one folder per class in 5 folds; fold 2 is the test split; 10 % of the other folds"
        " is for validation"
    )


def test_copies_that_any_fold_may_part_are_told(photographs):
    (photographs / "dark" / "copy.png").write_bytes((photographs / "dark" / "0.png").read_bytes())
    lines = [
        describe(load_dataset(str(photographs), validation=None, folds=3, fold=fold))[-1]
        for fold in (1, 2, 3)
    ]
    # Told by every fold, but where both copies are tested, which no fold can part.
    assert sum("twice in the folds" in line for line in lines) >= 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"folds": 8, "fold": 1},
            "folds is 8, must be at most 7, the number of images of the rarest class 'light'",
        ),
        ({"folds": 1, "fold": 1}, "folds must be a whole number from 2 to 1,000, got 1"),
        ({"folds": 5, "fold": 6}, r"fold must be from 1 to folds \(5\), got 6"),
        ({"folds": 5, "fold": 0}, r"fold must be from 1 to folds \(5\), got 0"),
        ({"folds": 5}, r"fold must be from 1 to folds \(5\), got None"),
        ({"fold": 2}, "fold must be none without folds, got 2"),
        ({"folds": 2.0, "fold": 1}, r"folds must be a whole number from 2 to 1,000, got 2\.0"),
    ],
)
def test_folds_that_cannot_be_are_refused_in_one_sentence(photographs, keys, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(str(photographs), **keys)


def test_no_image_is_left_out_of_the_folds(photographs):
    (photographs / "dark" / "broken.png").write_bytes(b"no image")
    for fold in (1, 2):
        with pytest.raises(ValueError, match="belongs to the images that are measured"):
            load_dataset(str(photographs), folds=2, fold=fold, validation=None, on_bad_image="skip")


def test_cifars_test_images_are_left_alone(monkeypatch):
    from spem.data import dataset as module
    from spem.data.batches import Split

    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 3, 32, 32)
    pools = Split(images[:30], torch.arange(30) % 10), Split(images[30:], torch.arange(10))
    monkeypatch.setattr(module.cifar, "find", lambda *_: "here")
    monkeypatch.setattr(module.cifar, "read", lambda *_: (*pools, tuple("0123456789")))
    tested = [
        load_dataset("cifar10", validation=None, folds=3, fold=fold).test for fold in (1, 2, 3)
    ]
    assert set.union(*map(rows, tested)) == rows(pools[0])
    assert [len(split.labels) for split in tested] == [10, 10, 10]


def test_an_error_does_not_advise_what_cannot_help(photographs):
    bad = next((photographs).rglob("*.png"))
    bad.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"lists all such images: remove them$"):
        load_dataset(str(photographs), image_size=4, folds=3, fold=1)


def test_a_data_set_is_written_in_one_line():
    assert repr(load_dataset("digits")) == (
        "Dataset('digits', 10 classes, train=Split of 1,293 images 1×8×8,"
        " validation=Split of 144 images 1×8×8, test=Split of 360 images 1×8×8)"
    )
