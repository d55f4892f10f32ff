import http.server
import threading
from functools import partial

import pytest
import torch
from test_cifar import archive, small, write

from spem._extras import needs_extra
from spem.data import cifar
from spem.data.dataset import load_dataset


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation": 0.0}, r"validation must be in \(0, 1\), got 0"),
        ({"validation": 1.0}, r"validation must be in \(0, 1\), got 1"),
        ({"image_size": 0}, "image_size must be a whole number from 1 to"),
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


def test_a_missing_package_names_its_extra():
    with (
        pytest.raises(ImportError, match=r"no_such_package.* extra 'train': pip install "),
        needs_extra("train"),
    ):
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]
