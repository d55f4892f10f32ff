"""Folders of images: layouts, unreadable pictures, statistics, duplicates."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from pictures import paint as paint_any
from PIL import Image
from test_dataset import rows

from spem.data.batches import measure_statistics
from spem.data.dataset import load_dataset
from spem.data.describe import describe, find_duplicates
from spem.data.images import find_images
from spem.data.sheet import draw_sheet

paint = partial(paint_any, size=(20, 10))


@pytest.fixture
def single(tmp_path):
    """Two classes of ten images, dark and light, in every format; a text and a hidden folder."""
    for number, suffix in enumerate(["png", "jpg", "JPEG", "webp", "bmp"] * 2):
        paint(tmp_path / "light" / f"{number}.{suffix}", 200 + number)
        paint(tmp_path / "dark" / "below" / f"{number}.{suffix}", number)
    (tmp_path / "dark" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_single_folder_is_split_by_the_seed(single):
    first, again, other = (
        load_dataset(str(single), validation=0.25, seed=seed) for seed in (0, 0, 1)
    )
    assert first.classes == ("dark", "light")
    assert first.validation
    splits = (first.train, first.validation, first.test)
    assert [split.labels.bincount().tolist() for split in splits] == [[6, 6], [2, 2], [2, 2]]
    for split in splits:
        assert split.images.shape[1:] == (3, 32, 32)
        assert torch.equal(split.labels, (split.images.float().mean((1, 2, 3)) > 100).long())
    assert torch.equal(first.test.images, again.test.images)
    assert rows(first.test) != rows(other.test)
    assert len(set.union(*map(rows, splits))) == 20


@pytest.fixture
def divided(tmp_path):
    for part, number in (("train", 8), ("val", 2), ("test", 3)):
        for index in range(number):
            paint(tmp_path / part / "b[1]" / f"{index}.png", 200)
            paint(tmp_path / part / "a" / f"{index}.png", 10)
    return tmp_path


def test_a_divided_folder_keeps_its_splits(divided):
    data = load_dataset(str(divided), image_size=8)
    assert data.validation
    assert data.classes == ("a", "b[1]")
    for split, number in ((data.train, 8), (data.validation, 2), (data.test, 3)):
        assert split.labels.tolist() == [0] * number + [1] * number
        assert split.images.shape == (2 * number, 3, 8, 8)
    assert load_dataset(str(divided), validation=None).validation is None


def test_a_divided_folder_without_val_holds_out_part_of_train(divided):
    shutil.rmtree(divided / "val")
    data = load_dataset(str(divided), validation=0.25)
    assert data.validation
    assert data.validation.labels.bincount().tolist() == [2, 2]
    assert data.train.labels.bincount().tolist() == [6, 6]
    assert data.test.labels.bincount().tolist() == [3, 3]


def test_train_and_val_alone_are_imagenets_layout(divided):
    shutil.rmtree(divided / "test")
    data = load_dataset(str(divided), validation=0.25)
    assert data.validation
    assert data.folder
    assert [len(s.labels) for s in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert {file.parts[-3] for file in data.folder.files["test"]} == {"val"}
    assert {file.parts[-3] for file in data.folder.files["validation"]} == {"train"}
    assert data.folder.layout == (
        "train/ is for training, val/ is the test split; 25 % of train/ is for validation"
    )


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val(divided, name):
    (divided / "val").rename(divided / name)
    data = load_dataset(str(divided))
    assert data.validation
    assert data.folder
    assert {file.parts[-3] for file in data.folder.files["validation"]} == {name}
    assert f"{name}/ is for validation" in describe(data)[1]


def test_folders_that_are_not_used_are_named(divided):
    for name in ("extra", "valid"):
        (divided / name).mkdir()
    assert "not used: extra/, valid/" in describe(load_dataset(str(divided)))
    assert "val/ is not used" in describe(load_dataset(str(divided), validation=None))[1]


@pytest.mark.parametrize("part", ["train", "test", "val"])
def test_a_folder_that_is_incomplete_is_refused(divided, part):
    for other in {"train", "test", "val"} - {part}:
        shutil.rmtree(divided / other)
    with pytest.raises(ValueError, match=rf"has {part}; train and test \(or val\) are both needed"):
        load_dataset(str(divided))


def test_layout_sizes_and_counts_are_described(single):
    lines = describe(load_dataset(str(single), validation=0.25, image_size=8))
    assert lines[:3] == [
        f"data: {single}, 2 classes; 12 training, 4 validation and 4 test images of 8×8 pixels",
        "layout: one folder per class; 20 % of the images are the test split; 25 % of the rest is"
        " for validation",
        "files: 20×10 pixels, brought to 8×8 (image_size)",
    ]
    assert describe(load_dataset("digits")) == [
        "data: digits, 10 classes; 1,293 training, 144 validation and 360 test images of 8×8 pixels"
    ]


def test_every_suffix_counts_and_hidden_files_do_not(tmp_path):
    for suffix in ("tif", "TIFF", "gif", "png"):
        paint(tmp_path / "a" / f"1.{suffix}", 10)
    (tmp_path / "a" / "._1.png").write_bytes(b"what a Mac leaves in an archive")
    (tmp_path / "a" / "folder.png").mkdir()
    assert [file.name for file in find_images(tmp_path)] == ["1.TIFF", "1.gif", "1.png", "1.tif"]


@pytest.fixture
def many(tmp_path):
    """100 training images of class a and 20 of b, two test images of each, all different."""
    numbers = {("train", "a"): range(100), ("train", "b"): range(100, 120)}
    numbers |= {("test", "a"): range(200, 202), ("test", "b"): range(210, 212)}
    for (part, name), shades in numbers.items():
        for shade in shades:
            paint(tmp_path / part / name / f"{shade}.bmp", shade, size=(4, 4))
    return tmp_path


def test_an_unreadable_training_image_is_skipped_and_changes_no_other_split(many):
    before = load_dataset(str(many), image_size=4, on_bad_image="skip")
    assert before.folder
    bad = before.folder.files["train"][5]
    bad.write_bytes(b"text")
    after = load_dataset(str(many), image_size=4, on_bad_image="skip")
    assert after.folder
    assert after.folder.files["validation"] == before.folder.files["validation"]
    assert [*after.folder.files["train"]] == [f for f in before.folder.files["train"] if f != bad]
    assert len(after.train.labels) == len(before.train.labels) - 1
    (line,) = [line for line in describe(after) if "left out" in line]
    assert f"{bad} cannot be read as an image" in line


def test_more_than_one_percent_is_too_much(many):
    for number in range(2):
        (many / "train" / "a" / f"{number}.bmp").write_bytes(b"text")
    said = r"2 of 120 training images or more.*1 %.*0\.bmp.*1\.bmp.*; remove"
    with pytest.raises(ValueError, match=said):
        load_dataset(str(many), image_size=4, on_bad_image="skip", validation=None)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_an_image_that_is_measured_is_never_skipped(many, part):
    folder = load_dataset(str(many), image_size=4).folder
    assert folder
    folder.files[part][0].write_bytes(b"text")
    with pytest.raises(ValueError, match="only training images are skipped"):
        load_dataset(str(many), image_size=4, on_bad_image="skip")


def test_all_unreadable_images_can_be_listed(many):
    bad = [many / "train" / "a" / "1.bmp", many / "test" / "b" / "210.bmp"]
    for file in bad:
        file.write_bytes(b"text")
    data = load_dataset(str(many), image_size=4, on_bad_image="list", validation=None)
    assert data.folder
    assert [line.partition(" cannot")[0] for line in data.folder.unreadable] == [*map(str, bad)]


@pytest.mark.parametrize("mode", ["skip", "list"])
def test_a_class_without_a_readable_image_is_refused(many, mode):
    shutil.rmtree(many / "train" / "b")
    (many / "train" / "b").mkdir()
    (many / "train" / "b" / "0.bmp").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"no training image of class 'b' can be read.*0\.bmp"):
        load_dataset(str(many), image_size=4, on_bad_image=mode, validation=None)


def test_duplicates_across_splits_are_counted_and_three_are_named(many):
    data = load_dataset(str(many), image_size=4, validation=None)
    assert not [line for line in describe(data) if line.startswith("duplicates")]
    for number in range(4):  # copies under other names, in another format
        paint(many / "test" / "a" / f"{number}.png", number, size=(8, 8))
    paint(many / "train" / "a" / "twice.bmp", 50, size=(4, 4))  # in the same split it does no harm
    data = load_dataset(str(many), image_size=4, validation=None)
    assert len(find_duplicates(data)) == 4
    assert describe(data)[-1] == (
        "duplicates: 4 images are in more than one split, so the accuracy may be too high:"
        " test/a/0.png = train/a/0.bmp; test/a/1.png = train/a/1.bmp; test/a/2.png = train/a/2.bmp"
        "; …"
    )


def test_mean_and_std_are_those_of_the_pixels():
    images = torch.randint(0, 256, (50, 3, 5, 7), dtype=torch.uint8)
    images[:, 2] = 51
    mean, std = measure_statistics(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=5e-5)
    assert std == pytest.approx([*pixels[:2].std(1, correction=0).tolist(), 1 / 255], abs=5e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_has_every_image(tmp_path, channels):
    images = torch.randint(0, 256, (10, channels, 16, 16), dtype=torch.uint8)
    captions = ["a", "a very long name of a class", "猫", "", *"cdefgh"]
    draw_sheet(tmp_path / "x.png", images, captions, "ten")
    found = np.asarray(Image.open(tmp_path / "x.png"))
    for row, column, number in ((0, 0, 0), (0, 7, 7), (1, 1, 9)):
        top, left = 36 + row * (112 + 28), 8 + column * (112 + 8)
        shown = found[top : top + 112 : 7, left : left + 112 : 7]
        expected = images[number].permute(1, 2, 0).expand(-1, -1, 3)
        assert np.array_equal(shown, expected)


def test_a_class_that_train_lacks_is_refused(divided):
    paint(divided / "test" / "c" / "0.png", 1)
    with pytest.raises(ValueError, match="test has the class 'c', which train lacks"):
        load_dataset(str(divided))


def test_a_class_without_images_is_refused(divided):
    (divided / "train" / "c").mkdir()
    with pytest.raises(ValueError, match="c holds no image"):
        load_dataset(str(divided))


def test_a_single_class_is_refused(tmp_path):
    paint(tmp_path / "a" / "0.png", 1)
    with pytest.raises(ValueError, match="holds 1 folders of classes; at least 2 are needed"):
        load_dataset(str(tmp_path))


def test_a_class_of_one_image_is_refused(single):
    paint(single / "lonely" / "0.png", 1)
    with pytest.raises(ValueError, match="only 1 image of class 'lonely' is left"):
        load_dataset(str(single))


def test_a_fraction_too_small_for_the_classes_is_refused(single):
    with pytest.raises(ValueError, match=r"0\.01 of 16 images of 2 classes cannot be held out"):
        load_dataset(str(single), validation=0.01)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"]
)
def test_an_unreadable_image_is_named(single, damage):
    paint(single / "dark" / "x.png", 5, size=(300, 200))
    path = single / "dark" / "x.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        load_dataset(str(single))
