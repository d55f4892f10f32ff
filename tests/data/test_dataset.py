import http.server
import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from test_cifar import archive, small, write

from spem._extras import needs_extra
from spem.data.dataset import cifar, load_dataset, prepare_image


def rows(split):
    """The images of a split as a set."""
    return {image.numpy().tobytes() for image in split.images}


def share(split):
    return split.labels.bincount() / len(split.labels)


def test_digits_are_scikit_learns_images():
    digits = load_dataset("digits", validation=None)
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.classes == tuple("0123456789")
    assert set(digits.train.images.unique().tolist()) == {round(n * 255 / 16) for n in range(17)}
    assert digits.validation is None


def test_digits_have_one_test_split_and_a_validation_split_by_seed():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (0, 0, 1))
    assert first.validation
    assert again.validation
    assert other.validation
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.validation.images, again.validation.images)
    assert rows(first.validation) != rows(other.validation)
    assert len(first.validation.labels) == 144
    assert len(first.train.labels) == 1293
    whole = load_dataset("digits", validation=None).train
    assert rows(first.train) | rows(first.validation) == rows(whole)
    for split in (first.validation, first.test):
        assert (share(split) - share(whole)).abs().max() < 0.01


def test_the_published_sums_are_those_of_the_data_sets_page():
    assert cifar.LAYOUTS["cifar10"].md5 == "c58f30108f718f92721af3b95e74349a"
    assert cifar.LAYOUTS["cifar100"].md5 == "eb9058c3a382ffc7106e4002c42a8d85"


@pytest.fixture
def layout(monkeypatch):
    """A CIFAR-10 of six images a split."""
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", small())
    return small()


def test_cifar_is_read_below_the_data_folder(tmp_path, layout):
    write(tmp_path / layout.folder, layout, labels=[0, 0, 0, 1, 1, 1])
    data = load_dataset("cifar10", data_dir=tmp_path, validation=None, image_size=16)
    assert data.name == "cifar10"
    assert data.train.images.shape == (6, 3, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert len(data.classes) == 10


def test_absent_cifar_says_what_was_looked_for(tmp_path, layout):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cifar10", data_dir=tmp_path / "data")
    for part in ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz", "--download"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def server(tmp_path, monkeypatch, layout):
    """Serves an archive of the small CIFAR-10; gives the folder it is served from."""
    folder = tmp_path / "served"
    _, known = archive(write(folder / layout.folder, layout), layout)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        url = f"http://127.0.0.1:{running.server_port}/{layout.archive}"
        monkeypatch.setitem(cifar.LAYOUTS, "cifar10", known._replace(url=url))
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield folder
        running.shutdown()


def test_cifar_is_downloaded_when_asked_and_absent(tmp_path, server, layout):
    target = tmp_path / "data"
    for _ in range(2):
        data = load_dataset("cifar10", data_dir=target, download=True, validation=None)
        assert data.train.images.shape == (6, 3, 32, 32)
        assert [path.name for path in target.iterdir()] == [layout.archive]
        (server / layout.archive).unlink(missing_ok=True)  # the second time it is not asked for


def test_a_failed_download_leaves_nothing(tmp_path, server, layout):
    (server / layout.archive).write_bytes(b"altered")
    for _ in range(2):
        with pytest.raises(
            ConnectionError, match=r"cifar-10-python\.tar\.gz could not be downloaded"
        ):
            load_dataset("cifar10", data_dir=tmp_path / "data", download=True)
        assert not list((tmp_path / "data").iterdir())
        (server / layout.archive).unlink(missing_ok=True)


def paint(path, shade, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


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


def test_a_folder_without_test_is_refused(divided):
    shutil.rmtree(divided / "test")
    with pytest.raises(ValueError, match="has train and val; train and test are both needed"):
        load_dataset(str(divided))


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation": 0.0}, "validation is 0.0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"image_size": 0}, "image_size is 0"),
        (
            {"name": "digit"},
            "there is no folder digit, nor a data set of that name; known: digits, ",
        ),
        ({"name": "no/folder"}, "there is no folder no/folder, nor a data set of that name"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(**{"name": "digits", **wrong})


@pytest.mark.parametrize(("size", "centre"), [((90, 30), (1, 0)), ((30, 90), (0, 1))])
def test_an_image_is_resized_by_its_shorter_side_and_cut_in_the_middle(tmp_path, size, centre):
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    image.save(tmp_path / "x.png")
    for side in (10, 30, 60):
        scaled = image.resize([length * side // 30 for length in size], Image.Resampling.BILINEAR)
        left, top = (side * steps for steps in centre)
        expected = np.array(scaled.crop((left, top, left + side, top + side)), dtype=int)
        for source in (tmp_path / "x.png", str(tmp_path / "x.png"), image):
            found = prepare_image(source, size=side, channels=3)
            assert found.dtype == torch.uint8
            # One grey level: Pillow rounds between its two passes, whose order depends on the box.
            assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_an_image_in_grey_and_of_two_sides():
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    assert prepare_image(image, size=(8, 12), channels=1).shape == (1, 8, 12)
    assert prepare_image(image, size=8, channels=1).unique().tolist() == [255]
    with pytest.raises(ValueError, match="channels is 2"):
        prepare_image(image, size=8, channels=2)


@pytest.mark.parametrize("kind", [("uint16", 257), (">u2", 257), ("int32", 257), ("int32", 1)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, kind):
    ramp = np.arange(256).reshape(16, 16)
    image = Image.fromarray((ramp * kind[1]).astype(kind[0]))
    image.save(tmp_path / "x.tiff")
    for source, channels in ((image, 3), (tmp_path / "x.tiff", 1)):
        found = prepare_image(source, size=16, channels=channels)
        assert found.tolist() == [ramp.tolist()] * channels


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.new("F", (16, 16)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff has floating-point pixels"):
        prepare_image(tmp_path / "x.tiff", size=16, channels=1)


def test_a_photo_is_turned_upright(tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = image.getexif()
    exif[0x0112] = 3  # taken upside down
    image.save(tmp_path / "x.png", exif=exif)
    found = prepare_image(tmp_path / "x.png", size=8, channels=1)
    assert found[0, :4].max() == 0
    assert found[0, 4:].min() == 255


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*x\.png"):
        prepare_image(tmp_path / "x.png", size=8, channels=3)


def test_a_missing_package_names_its_extra():
    with (
        pytest.raises(ImportError, match=r"no_such_package.* extra 'train': pip install "),
        needs_extra("train"),
    ):
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]
