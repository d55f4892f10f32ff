"""Tables and tar files of images: what they may hold, their splits, and what is refused."""

import csv
import io
import json
import tarfile
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from spem.data import shard_lists
from spem.data.batches import Batches
from spem.data.dataset import load_dataset
from spem.data.describe import describe

KEYS = {"image_size": 8, "validation": None}


def picture(number):
    pixels = np.full((12, 10, 3), number, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def levels(split):
    """The grey level of each image, which tells it from the others."""
    (batches,) = [[*Batches(split, 1000, mean=[0.0] * 3, std=[1.0] * 3).in_order()]]
    return (batches[0][0][:, 0, 0, 0] * 255).round().int().tolist()


@pytest.fixture
def table(tmp_path):
    """A table of 20 pictures, whose labels need quotes, with the splits that are given."""

    def write(splits=None, labels=('fir, "old"', "häher"), encoding="utf-8"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        path = tmp_path / "table.csv"
        with path.open("w", newline="", encoding=encoding) as file:
            rows = csv.writer(file)
            rows.writerow(["label", "path", *(["split"] if splits else []), "remark"])
            for number in range(20):
                name = f"pictures/a, {number}.png"
                (tmp_path / name).write_bytes(picture(number))
                own = [splits[number % len(splits)]] if splits else []
                rows.writerow([labels[number // 10], name, *own, "x"])
        return path

    return write


@pytest.mark.parametrize("loader", ["memory", "stream"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_with_splits(table, loader, encoding):
    path = table(["train", "train", "test", "val", "train"], encoding=encoding)
    data = load_dataset(str(path), image_size=8, loader=loader)
    assert data.classes == ('fir, "old"', "häher")
    assert levels(data.train) == [n for n in range(20) if n % 5 in (0, 1, 4)]
    assert levels(data.test) == [2, 7, 12, 17]
    assert levels(data.validation) == [3, 8, 13, 18]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert "split train is for training, split test is the test split; split validation is for" in (
        " ".join(describe(data))
    )
    assert load_dataset(str(path), loader=loader, **KEYS).validation is None


def test_a_table_without_splits_is_split_by_the_seed(table):
    path = str(table())
    data, again, other = (load_dataset(path, seed=seed, **KEYS) for seed in (0, 0, 1))
    assert levels(data.test) == levels(again.test) != levels(other.test)
    assert sorted(levels(data.train) + levels(data.test)) == [*range(20)]
    assert "the rows of table.csv; 20 % of the images are the test split" in describe(data)[1]
    folds = [levels(load_dataset(path, folds=4, fold=fold, **KEYS).test) for fold in (1, 2, 3, 4)]
    assert sorted(chain(*folds)) == [*range(20)]


def test_duplicates_of_a_table_are_named(table, tmp_path):
    path = table(["train", "test"])
    (tmp_path / "pictures/a, 1.png").write_bytes(picture(0))
    assert "pictures/a, 1.png = pictures/a, 0.png" in describe(load_dataset(str(path), **KEYS))[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("path", "file"), "has no column 'path'; it has: label, file"),
        (lambda text: "", "has no column 'path'; it has:"),
        (lambda text: text.replace("a, 3", "b, 3"), r"files that are not there \(1\): .*b, 3.png"),
        (lambda text: text.replace("häher", '"fir, ""old"""'), "has 1 different labels; at lea"),
        (lambda text: text.replace("train", "trian"), "line 2 of .*: unknown split 'trian'; known"),
        (lambda text: text.replace("train", "test"), "has no row whose split is train"),
        (lambda text: text.replace("häher", ""), "line 12 of .* label ''"),
        (lambda text: text + "\nonly", "line 23 of .* has the path None"),
        (lambda text: text + "x" * 200_000, "cannot be read as a CSV file: field larger"),
    ],
)
def test_a_wrong_table_is_refused(table, change, message):
    path = table(["train", "test"])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_dataset(str(path), **KEYS)


@pytest.fixture
def shards(tmp_path):
    """Writes tar files of pictures: a mapping of their names to numbers, labels by a function."""

    def write(content, label=lambda n: str(n % 3), suffix="cls"):
        for name, numbers in content.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            with tarfile.open(tmp_path / name, "w") as archive:
                for number in numbers:
                    text = label(number)
                    for end, data in (("png", picture(number)), (suffix, text.encode())):
                        member = tarfile.TarInfo(f"x.y/{number}.{end}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        return str(tmp_path)

    return write


SPLIT = {"train-0.tar": range(30), "train-1.tar": range(30, 60), "val-0.tar": range(60, 72)}


@pytest.mark.parametrize(
    "layout", [SPLIT, {name.replace("-", "/"): n for name, n in SPLIT.items()}]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_tar_files_are_read_in_their_splits(shards, layout, workers):
    data = load_dataset(shards(layout), workers=workers, **KEYS)
    assert data.classes == ("0", "1", "2")
    assert levels(data.train) == [*range(60)]
    assert levels(data.test) == [*range(60, 72)]
    assert data.train.labels.tolist() == [n % 3 for n in range(60)]
    order = data.train.images.files.order(1)
    found = [*Batches(data.train, 7, resized_crop=[0.5, 1.0]).shuffled(order, seed=3)]
    assert torch.cat([labels for _, labels in found]).tolist() == (order % 3).tolist()
    later = [*Batches(data.train, 7, resized_crop=[0.5, 1.0]).shuffled(order, start=4, seed=3)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found[4:], later, strict=True))


def test_without_splits_they_are_drawn(shards):
    data = load_dataset(shards({"a.tar": range(40), "b.tar": range(40, 60)}), image_size=8)
    splits = [levels(split) for split in (data.train, data.validation, data.test)]
    assert sorted(chain(*splits)) == [*range(60)]
    assert "2 tar files; 20 % of the images are the test split" in describe(data)[1]


def test_names_of_classes(shards, tmp_path):
    data = load_dataset(shards(SPLIT, lambda n: f"class {n % 2}"), **KEYS)
    assert data.classes == ("class 0", "class 1")
    data = load_dataset(shards(SPLIT, lambda n: json.dumps({"label": n % 2}), "json"), **KEYS)
    assert data.classes == ("0", "1")
    folder = shards(SPLIT)
    (tmp_path / "classes.txt").write_text("ash\noak\nelm\n")
    assert load_dataset(folder, **KEYS).classes == ("ash", "oak", "elm")
    (tmp_path / "classes.txt").write_text("ash\n")
    with pytest.raises(ValueError, match=r"classes.txt has 1 names, but there is a label 2"):
        load_dataset(folder, **KEYS)


def test_an_epoch_reads_one_file_behind_the_other(shards):
    files = {f"train-{n}.tar": range(10 * n, 10 * n + 10) for n in range(20)}
    images = load_dataset(shards(files), **KEYS).train.images.files
    for buffer in (1, 7, 1000):
        order = images.order(5, buffer)
        assert sorted(order.tolist()) == [*range(len(images))]
        assert torch.equal(order, images.order(5, buffer))
        assert not torch.equal(order, images.order(6, buffer))
    read = [images.places[row, 0] for row in images.order(5, 1).tolist()]
    assert len(dict.fromkeys(read)) == 1 + sum(np.diff(read) != 0)  # each file once
    positions = np.empty(len(images))
    positions[images.order(5, 1)] = np.arange(len(images))
    early = positions[images.order(5, 20)] - np.arange(len(images))
    assert early.max() <= 20  # nothing is read before its place in the buffer


def test_a_long_list_of_tar_files_is_kept(shards, tmp_path, monkeypatch):
    folder, cache = shards(SPLIT), tmp_path / "cache"
    first = load_dataset(folder, cache=cache, **KEYS)
    listing = shard_lists._list_members
    monkeypatch.setattr(shard_lists, "_list_members", None)
    again = load_dataset(folder, cache=cache, **KEYS)
    assert levels(again.train) == levels(first.train)
    assert torch.equal(again.train.labels, first.train.labels)
    monkeypatch.setattr(shard_lists, "_list_members", listing)
    shards({"train-1.tar": range(100, 103)})
    assert levels(load_dataset(folder, cache=cache, **KEYS).train)[-3:] == [100, 101, 102]


@pytest.mark.parametrize("size", [0, 10, 20_000])
def test_damaged_tar_files_are_refused(shards, tmp_path, size):
    folder, damaged = shards(SPLIT), tmp_path / "train-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"train-1\.tar cannot be read as a tar file"):
        load_dataset(folder, **KEYS)


def test_what_tar_files_lack_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"0.png has no label: x.y/0.cls is missing"):
        load_dataset(shards(SPLIT, suffix="txt"), **KEYS)
    with pytest.raises(ValueError, match=r"0.json holds no label"):
        load_dataset(shards(SPLIT, lambda n: "[", "json"), **KEYS)
    folder = shards(SPLIT)
    with pytest.raises(ValueError, match="loader is 'memory', must be 'stream' or None"):
        load_dataset(folder, loader="memory", **KEYS)
    data = load_dataset(folder, **KEYS)
    with (tmp_path / "train-0.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(ValueError, match=r"train-0.tar/x.y/\d+.png cannot be read as an image"):
        list(Batches(data.train, 5).in_order())
