"""Streamed folders: the same images and batches as from memory, whoever decodes them."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from spem.data import decoding, names, stream
from spem.data.batches import Batches, measure_statistics
from spem.data.dataset import load_dataset
from spem.data.decoding import decode_image
from spem.data.images import find_images, open_image
from spem.data.names import Names, list_images
from spem.data.resized_crop import ResizedCrop
from spem.data.splits import sum_of_folder
from spem.data.stream import Pictures

CUT = {"resized_crop": [0.08, 1.0], "flip": True}


@pytest.fixture
def photographs(tmp_path):
    """Two classes of 15 pictures of noise, in several sizes, formats and depths of folders."""
    numbers = np.random.default_rng(0)
    for label in ("ash", "oak"):
        for number in range(15):
            pixels = numbers.integers(256, size=(30 + number, 40, 3), dtype=np.uint8)
            path = tmp_path / "photographs" / label / ("below" * (number % 2))
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / f"{number}.{('jpg', 'png', 'gif')[number % 3]}")
    return tmp_path / "photographs"


def load(folder, **keys):
    return load_dataset(str(folder), **{"image_size": 16, "loader": "stream"} | keys)


def equal(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(*both) for batches in pairs for both in zip(*batches, strict=True))


def order_of(split):
    return torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keys", [{}, {"folds": 3, "fold": 2}, {"validation": None}])
def test_batches_are_those_from_memory(photographs, workers, keys):
    memory = load(photographs, loader="memory", crop_ratio=0.9, **keys)
    streamed = load(photographs, workers=workers, crop_ratio=0.9, **keys)
    assert memory.classes == streamed.classes
    assert memory.folder.files == streamed.folder.files
    for name in ("train", "validation", "test"):
        one, other = getattr(memory, name), getattr(streamed, name)
        if one is not None:
            assert torch.equal(one.labels, other.labels)
            assert one.images.shape == other.images.shape
            assert equal(Batches(one, 4).in_order(), Batches(other, 4).in_order())
    augmented = []
    for data in (memory, streamed):
        torch.manual_seed(3)
        batches = Batches(data.train, 4, crop=2, flip=True, random_erasing=0.5)
        augmented.append([*batches.shuffled(order_of(data.train))])
    assert equal(*augmented)


def test_random_crops_follow_from_seed_and_row_alone(photographs):
    found = []
    for workers in (0, 1, 2):
        split = load(photographs, workers=workers).train
        state = torch.get_rng_state()
        found.append([*Batches(split, 4, **CUT).shuffled(order_of(split), seed=7)])
        assert torch.equal(torch.get_rng_state(), state)
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    later = [*Batches(split, 4, **CUT).shuffled(order_of(split), start=3, seed=7)]
    assert equal(found[0][3:], later)
    other = [*Batches(split, 4, **CUT).shuffled(order_of(split), seed=8)]
    assert not equal(found[0], other)
    whole = torch.cat([images for images, _ in found[0]])
    rows = order_of(split)
    for batch in (2, 7):  # of other sizes, and in another order
        again = [*Batches(split, batch, **CUT).shuffled(rows.flip(0), seed=7)]
        assert torch.equal(torch.cat([images for images, _ in again]).flip(0), whole)


def test_each_process_gets_its_share(photographs):
    split = load(photographs).train
    shares = ({}, {"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    whole, *parts = (
        [images for images, _ in Batches(split, 6, **CUT, **share).shuffled(order_of(split))]
        for share in shares
    )
    for both, one, two in zip(whole, *parts, strict=True):
        assert torch.equal(both, torch.cat([one, two]))


def test_the_distribution_of_crops_is_that_of_the_paper():
    crop, numbers = ResizedCrop((0.1, 0.3), False, None), np.random.default_rng(0)
    boxes = torch.tensor([crop.draw(numbers, 300, 400) for _ in range(4000)]).double()
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, ratio = height * width / 120_000, width / height
    assert 0.098 < area.min() < 0.102
    assert 0.298 < area.max() < 0.302
    assert 0.74 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.35
    assert abs(area.mean() - 0.2) < 0.003  # three standard errors
    assert abs(ratio.log().mean()) < 0.008
    assert abs((top / (300 - height)).mean() - 0.5) < 0.014
    assert crop.draw(numbers, 10, 1000) == (0, 493, 10, 13)
    assert crop.draw(numbers, 1000, 10) == (493, 0, 13, 10)


def test_a_crop_is_a_part_of_the_picture_resized(monkeypatch):
    pixels = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    monkeypatch.setattr(ResizedCrop, "draw", lambda *_: (10, 20, 32, 48))
    expected = Image.fromarray(pixels[10:42, 20:68]).resize((16, 16), Image.Resampling.BILINEAR)
    cut = ResizedCrop((0.1, 1.0), False, None)(pixels, 16, 0, 0)
    difference = cut.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    assert difference.abs().max() <= 1
    assert difference.float().abs().mean() < 0.1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_both_decoders_give_the_same_pixels(mode, options, tmp_path, monkeypatch):
    shape = {"L": (45, 61), "RGB": (45, 61, 3), "CMYK": (45, 61, 4)}[mode]
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels, mode).save(path, quality=80, **options)
    found = decode_image(path.read_bytes(), "a")
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    for other in (decode_image(path.read_bytes(), "a"), open_image(path)):
        assert np.array_equal(np.asarray(found), np.asarray(other))
        assert found.mode == other.mode


def test_a_turned_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_image((tmp_path / "a.jpg").read_bytes(), "a").size == (20, 30)


def test_statistics_are_those_of_a_thousand_images(photographs, monkeypatch):
    memory, streamed = load(photographs, loader="memory"), load(photographs)
    assert measure_statistics(memory.train.images) == measure_statistics(streamed.train.images)
    monkeypatch.setattr(stream, "_MEASURED", 5)
    measured = measure_statistics(streamed.train.images)
    assert measured == measure_statistics(streamed.train.images)
    assert measured != measure_statistics(memory.train.images)


def test_large_folders_are_streamed_unless_asked_otherwise(photographs, monkeypatch):
    assert isinstance(load(photographs, loader=None).train.images, torch.Tensor)
    monkeypatch.setattr("spem.data.sources._MOST_BYTES", 30 * 3 * 16 * 16 - 1)
    assert isinstance(load(photographs, loader=None).train.images, Pictures)
    assert isinstance(load(photographs, loader="memory").train.images, torch.Tensor)


def test_an_image_that_cannot_be_read_is_named(photographs):
    data = load(photographs, on_bad_image="raise")
    bad = data.train.images.files[4]
    bad.write_bytes(b"no image")
    for workers in (0, 1):
        data.train.images.workers = workers
        with pytest.raises(ValueError, match=f"^{bad} cannot be read as an image"):
            list(Batches(data.train, 4).in_order())


def test_an_image_that_cannot_be_read_is_replaced_by_the_next(photographs):
    whole, data = load(photographs), load(photographs, on_bad_image="skip")
    data.train.images.files[4].write_bytes(b"no image")
    images, labels = map(torch.cat, zip(*Batches(data.train, 4, **CUT).in_order(), strict=True))
    rows = torch.arange(len(labels))
    rows[4] = 5
    assert torch.equal(labels, whole.train.labels[rows])
    data.train.images.files[4].write_bytes(data.train.images.files[5].read_bytes())
    expected = torch.cat([images for images, _ in Batches(whole.train, 4).in_order()])
    assert torch.equal(images, expected)
    data.train.images.files[4].write_bytes(b"no image")
    data.train.images.files[9].write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 21 training images or more cannot be read, and at"):
        list(Batches(data.train, 4).in_order())
    data.test.images.files[0].unlink()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        list(Batches(data.test, 4).in_order())


def test_a_worker_that_dies_is_said_to_have_died(photographs, monkeypatch):
    monkeypatch.setattr(
        Pictures, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL), raising=True
    )
    with pytest.raises(ValueError, match=r"a process that decodes images died .*workers: 0"):
        list(Batches(load(photographs, workers=1).train, 4).in_order())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"resized_crop": [0.5, 0.1]}, "resized_crop must be two ascending numbers above 0, at"),
        ({"resized_crop": [0.1, 1.0], "crop": 2}, "crop is 2, must be 0 with resized_crop"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(photographs, keys, message):
    with pytest.raises(ValueError, match=message):
        Batches(load(photographs).train, 4, **keys)
    with pytest.raises(ValueError, match="interpolation is lanczos, must be bilinear or bicubic"):
        Batches(load(photographs, interpolation="lanczos").train, 4, resized_crop=[0.1, 1.0])
    with pytest.raises(ValueError, match="for a folder that is streamed"):
        Batches(load(photographs, loader="memory").train, 4, resized_crop=[0.1, 1.0])
    with pytest.raises(ValueError, match="loader is 'stream', must be None or 'memory' for digits"):
        load("digits")


def test_paths_take_little_memory_and_come_back(tmp_path):
    texts = ["a/b.png", "a/ü.jpg", "b/\udcff.gif", "c/" + "x" * 200 + ".png"]
    found = Names.of(tmp_path, texts)
    assert [found.name(row) for row in range(4)] == texts
    assert [*found] == [tmp_path / text for text in texts]
    assert found[-1] == tmp_path / texts[-1]
    assert [*found.take([2, 0, 0])] == [tmp_path / texts[row] for row in (2, 0, 0)]
    assert [*found[1:3]] == [*found][1:3]
    assert Names.join([found[:1], found[1:1], found[1:]]) == found
    assert len(found.take([])) == 0
    with pytest.raises(IndexError):
        found[4]


def test_pictures_are_listed_as_before(photographs):
    (photographs / "ash" / ".hidden.png").touch()
    (photographs / "ash" / "notes.txt").touch()
    (photographs / "ash" / "below-a").mkdir()
    (photographs / "ash" / "below-a" / "1.png").touch()
    (photographs / "ash" / "folder.png").mkdir()
    (photographs / "ash" / "linked").symlink_to(photographs / "oak")
    (found,) = list_images(photographs, ["ash"])
    assert [*found] == find_images(photographs / "ash")


def test_a_long_list_is_kept_until_a_folder_changes(photographs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(names, "_WORTH", 10)
    kept, folders = tmp_path / "cache" / "a.list.safetensors", ["ash", "oak"]
    first = list_images(photographs, folders, kept)
    assert kept.exists()
    monkeypatch.setattr(names, "_walk", None)
    assert list_images(photographs, folders, kept) == first
    monkeypatch.undo()
    (photographs / "oak" / "below" / "new.png").touch()
    assert len(list_images(photographs, folders, kept)[1]) == 16
    for damaged in (b"", b"no archive", kept.read_bytes()[:200]):
        kept.write_bytes(damaged)
        assert len(list_images(photographs, folders, kept)[1]) == 16
        assert "cannot be read, so the pictures are listed again" in caplog.text
        caplog.clear()


def test_the_sum_of_a_streamed_folder_is_that_of_its_names(photographs):
    before = sum_of_folder(load(photographs))
    assert before.startswith("names ")
    assert sum_of_folder(load(photographs)) == before
    (photographs / "oak" / "2.gif").rename(photographs / "oak" / "3.gif")
    assert sum_of_folder(load(photographs)) != before
    assert not sum_of_folder(load(photographs, loader="memory")).startswith("names")
