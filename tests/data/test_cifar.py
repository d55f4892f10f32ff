import hashlib
import importlib.util
import pickle
import struct
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from spem.data import cifar

ROWS = 6
REAL = Path(__file__).parents[3] / "shared" / "data" / "make_cifar.py"


def pixels(rows=ROWS):
    return np.random.default_rng(rows).integers(0, 256, (rows, 3072), dtype=np.uint8)


def small(name="cifar10"):
    """The layout of a data set with one training file and few rows."""
    layout = cifar.LAYOUTS[name]
    return layout._replace(
        train={next(iter(layout.train)): ROWS}, test=dict.fromkeys(layout.test, ROWS)
    )


def write(folder, layout, *, data=None, labels=None, protocol=4):
    """Write the official folder that `layout` describes, or one that is wrong somewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {label}".encode() for label in range(layout.classes)]
    content = {
        b"batch_label": b"one of one",
        layout.labels.encode(): list(range(ROWS)) if labels is None else labels,
        b"data": pixels() if data is None else data,
        b"filenames": [b"a.png"] * ROWS,
    }
    (folder / layout.meta).write_bytes(pickle.dumps({layout.names.encode(): names}, protocol))
    for file in (*layout.train, *layout.test):
        (folder / file).write_bytes(pickle.dumps(content, protocol))
    return folder


def archive(folder, layout):
    """Pack an official folder; return the archive and the layout that knows its md5 sum."""
    path = folder.parent / layout.archive
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, layout.folder)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return path, layout._replace(md5=md5)


def python2_pickle(rows, labels):
    """The bytes that Python 2 and numpy 1 wrote, opcode by opcode: the published files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", side) for side in rows.shape) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    )
    array += (
        b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"labels") + numbers + text(b"data") + array + b"u."


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", cifar.LAYOUTS)
def test_a_folder_and_its_archive_are_read(tmp_path, name, protocol):
    layout = small(name)
    folder = write(tmp_path / layout.folder, layout, protocol=protocol)
    packed, layout = archive(folder, layout)
    for source in (folder, packed):
        contents = cifar.read(layout, source)
        for images, labels in (contents.train, contents.test):
            assert torch.equal(images, torch.from_numpy(pixels()).view(ROWS, 3, 32, 32))
            assert labels.tolist() == list(range(ROWS))
            assert labels.dtype == torch.int64
        assert contents.classes == tuple(f"class {label}" for label in range(layout.classes))
    assert {path.name for path in tmp_path.iterdir()} == {layout.folder, layout.archive}


def test_the_folder_is_preferred_to_the_archive(tmp_path):
    layout = small()
    assert cifar.find(layout, tmp_path) is None
    (tmp_path / layout.archive).touch()
    assert cifar.find(layout, tmp_path) == tmp_path / layout.archive
    (tmp_path / layout.folder).mkdir()
    assert cifar.find(layout, tmp_path) == tmp_path / layout.folder


def test_several_training_files_are_joined_in_their_order(tmp_path):
    layout = small()._replace(train={"data_batch_1": ROWS, "data_batch_2": ROWS})
    folder = write(tmp_path / layout.folder, layout)
    second = {"labels": [9] * ROWS, "data": np.zeros((ROWS, 3072), np.uint8)}
    (folder / "data_batch_2").write_bytes(pickle.dumps(second))
    images, labels = cifar.read(layout, folder).train
    assert labels.tolist() == [*range(ROWS), *[9] * ROWS]
    assert images[:ROWS].any()
    assert not images[ROWS:].any()


def test_the_published_form_of_python_2_is_read():
    content = cifar.load(python2_pickle(pixels(), [0, 9, 255]), Path("file"))
    assert content["labels"] == [0, 9, 255]
    assert np.array_equal(content["data"], pixels())


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_both_numpy_generations_are_read(protocol, module):
    written = pickle.dumps({"data": pixels()}, protocol)
    current = b"numpy._core.multiarray"
    assert current in written
    other = module.encode()
    if protocol == 4:  # a text carries its length, and so would the frame around all
        current, other = (bytes([len(name)]) + name for name in (current, other))
        assert written[2:3] == pickle.FRAME
        written = written[:2] + written[11:]
    written = written.replace(current, other)
    assert np.array_equal(cifar.load(written, Path("file"))["data"], pixels())


def test_an_array_in_column_order_is_read():
    array = np.asfortranarray(pixels())
    content = cifar.load(pickle.dumps({"data": array}, 4), Path("file"))
    assert np.array_equal(content["data"], array)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Evaluated:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, protocol):
    layout = small()
    folder = write(tmp_path / layout.folder, layout)
    marker = tmp_path / "marker"
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Malicious(marker)}, protocol))
    with pytest.raises(ValueError, match=r"test_batch is no readable .*it asks for "):
        cifar.read(layout, folder)
    assert not marker.exists()
    with pytest.raises(ValueError, match=r"file is no readable CIFAR file: it asks for .*eval"):
        cifar.load(pickle.dumps([Evaluated()], protocol), Path("file"))


@pytest.mark.parametrize("array", [np.zeros(3), np.array([{}]), np.zeros(2, "u1,u1")])
def test_arrays_of_anything_but_bytes_are_refused(array):
    with pytest.raises(ValueError, match="holds an array of"):
        cifar.load(pickle.dumps({"data": array}, 4), Path("file"))


def test_a_file_cut_off_anywhere_is_refused():
    whole = pickle.dumps({"labels": [1, 2], "data": pixels(1)}, 4)
    for length in (0, 1, 2, 5, 20, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match=r"data_batch_1 is no readable CIFAR file: .+"):
            cifar.load(whole[:length], Path("data_batch_1"))


def test_altered_bytes_never_end_in_another_error():
    whole = bytearray(pickle.dumps({"labels": [1, 2], "data": np.zeros((1, 4), np.uint8)}, 4))
    for position in range(len(whole)):
        altered = whole.copy()
        altered[position] ^= 0xFF
        with suppress(ValueError):
            assert isinstance(cifar.load(bytes(altered), Path("file")), dict)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": pixels(ROWS - 1)}, r"an array of \(5, 3072\), not 6 rows of 3072 bytes"),
        ({"data": pixels()[:, 1:].copy()}, r"an array of \(6, 3071\), not 6 rows of 3072 bytes"),
        ({"data": b"bytes"}, "'data' is no array"),
        ({"labels": [0] * (ROWS - 1)}, "'labels' is no list of 6"),
        ({"labels": b"labels"}, "'labels' is no list of 6"),
        ({"labels": [0, 1, 2, 3, 4, 10]}, "label 10 is not in 0 to 9"),
        ({"labels": [0, 1, 2, 3, 4, -1]}, "label -1 is not in 0 to 9"),
        ({"labels": [0, 1, 2, 3, 4, "x"]}, "label 'x' is not in 0 to 9"),
    ],
)
def test_a_wrong_structure_is_refused_with_the_path(tmp_path, wrong, message):
    layout = small()
    folder = write(tmp_path / layout.folder, layout, **wrong)
    with pytest.raises(ValueError, match=message) as caught:
        cifar.read(layout, folder)
    assert str(caught.value).startswith(str(folder / "data_batch_1"))


def test_a_folder_without_one_file_is_refused(tmp_path):
    layout = small()
    folder = write(tmp_path / layout.folder, layout)
    (folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py has no file test_batch"):
        cifar.read(layout, folder)


def test_class_names_of_another_number_are_refused(tmp_path):
    layout = small()
    folder = write(tmp_path / layout.folder, layout)
    (folder / layout.meta).write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(ValueError, match=r"batches\.meta: 'label_names' is no list of 10"):
        cifar.read(layout, folder)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"]
)
def test_a_damaged_archive_is_refused_and_nothing_is_unpacked(tmp_path, damage):
    layout = small()
    path, layout = archive(write(tmp_path / "source" / layout.folder, layout), layout)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"cifar-10-python\.tar\.gz is damaged or altered: its md5"
    ):
        cifar.read(layout, path)
    assert {entry.name for entry in path.parent.iterdir()} == {layout.folder, layout.archive}


@pytest.mark.skipif(not REAL.exists(), reason="needs the real CIFAR beside the project")
@pytest.mark.parametrize("name", cifar.LAYOUTS)
def test_real_images_are_read_as_they_were_written(tmp_path, monkeypatch, name):
    spec = importlib.util.spec_from_file_location("make_cifar", REAL)
    assert spec
    assert spec.loader
    make_cifar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cifar)
    images, labels, names, classes = make_cifar.load_split(name, "test", threads=1)
    part = images[:ROWS], labels[:ROWS], names[:ROWS], classes
    monkeypatch.setattr(make_cifar, "load_split", lambda *_: part)
    make_cifar.main(name, str(tmp_path))
    contents = cifar.read(small(name), tmp_path / cifar.LAYOUTS[name].folder)
    assert contents.classes == tuple(classes)
    for found_images, found_labels in (contents.train, contents.test):
        assert np.array_equal(found_images.permute(0, 2, 3, 1), images[:ROWS])
        assert found_labels.tolist() == labels[:ROWS].tolist()
