"""The commands `evaluate`, `predict` and `data`, on small folders and a bundled network."""

import csv
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from pictures import paint as paint_any
from PIL import Image
from torch import nn

from spem.cli import main
from spem.data.batches import Batches, normalise, restore_pixels
from spem.data.dataset import load_dataset
from spem.data.images import prepare_image
from spem.export.network import load_network
from spem.models import create_model
from spem.models.pretrained import FOLDER, find_run
from spem.surgery.config import config_of
from spem.train.loss import to_labels
from spem.train.mixing import Mixing
from spem.train.order import augmentation, hash_seed, order_rows
from spem.train.prediction import find_classifier, predict
from spem.train.preview import draw_first_batches
from spem.train.recipe import Recipe

NETWORK = "resnet20-spem-cifar10"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


paint = partial(paint_any, size=(20, 12))


@pytest.fixture
def pictures(tmp_path):
    """Five pictures in two folders, and a file that is none."""
    for number in range(5):
        paint(tmp_path / "in" / f"{number % 2}" / f"{number}.png", (50 * number, 9, 200))
    (tmp_path / "in" / "0" / "bad[1].png").write_bytes(b"text")
    return sorted(path for path in Path("in").rglob("*.png") if path.stem != "bad[1]")


@pytest.fixture
def cifar_folder(tmp_path):
    """A folder of CIFAR-10's classes in ImageNet's layout."""
    for number, name in enumerate(CLASSES):
        for part, copies in (("train", 10), ("val", 2)):
            for copy in range(copies):
                colour = (20 * number, 99 + copy, 10 if part == "val" else 200)
                paint(tmp_path / "photos" / part / name / f"{copy}.png", colour)
    return ["--data", "photos"]


def table(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def outputs(pictures):
    """Logits and features of the bundled network, computed picture by picture."""
    model, config = load_network(find_run(NETWORK))
    features = []
    find_classifier(model, 10).register_forward_pre_hook(lambda _, x: features.append(x[0]))
    images = torch.stack([prepare_image(p, size=32, channels=3) for p in pictures])
    with torch.no_grad():
        logits = [model(normalise(i[None], config["mean"], config["std"])) for i in images]
    return torch.cat(logits), torch.cat(features)


def test_predict_takes_folders_and_names_what_it_could_not_read(capsys, pictures):
    assert main(["predict", NETWORK, "in", "gone.png", "--top", "1"]) == 1
    printed = capsys.readouterr()
    found = re.findall(r"│ (in\S+) +│ (\w+)", printed.out)
    best = outputs(pictures)[0].argmax(1).tolist()
    assert found == [(str(p), CLASSES[n]) for p, n in zip(pictures, best, strict=True)]
    lines = printed.err.splitlines()
    assert len(lines) == 2
    assert "not classified: in/0/bad[1].png cannot be read as an image" in lines[0]
    assert "not classified: there is no image gone.png" in lines[1]


def test_predict_shows_no_table_without_a_row(capsys, pictures):
    assert main(["predict", NETWORK, "gone.png"]) == 1
    assert capsys.readouterr().out == ""


def test_predict_without_a_bad_picture_succeeds(capsys, pictures):
    assert main(["predict", NETWORK, *map(str, pictures)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["probability", "logit", "feature"])
def test_predict_writes_a_csv_file(capsys, monkeypatch, pictures, kind):
    small = {"features": False, "batch_size": 2}
    monkeypatch.setattr("spem.train.prediction.predict.__kwdefaults__", small)
    flags = {"probability": [], "logit": ["--logits"], "feature": ["--features"]}[kind]
    assert main(["predict", NETWORK, "in", "--csv", "out.csv", *flags]) == 1
    assert "5 pictures: out.csv" in capsys.readouterr().out
    rows = table("out.csv")
    logits, features = outputs(pictures)
    expected = {"probability": logits.softmax(1), "logit": logits, "feature": features}[kind]
    assert [row.pop("picture") for row in rows] == [*map(str, pictures)]
    assert [row.pop("class") for row in rows] == [CLASSES[n] for n in logits.argmax(1)]
    names = range(64) if kind == "feature" else CLASSES
    assert list(rows[0]) == [f"{kind}.{name}" for name in names]
    values = torch.tensor([[float(value) for value in row.values()] for row in rows])
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--logits", "give --csv FILE"),
        ("--csv x.csv --logits --features", "exclude each other"),
        ("--top 0", "top is 0"),
        ("--csv none/x.csv", "there is no file or folder none"),
        ("--csv empty", "is a directory: empty"),
        ("empty", "empty holds no image"),
    ],
)
def test_what_predict_refuses(capsys, tmp_path, words, sentence):
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "a.png", (1, 2, 3))
    assert main(["predict", NETWORK, "a.png", *words.split()]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "empty"]


def test_names_in_another_encoding_are_written_with_their_bytes(pictures):
    name = os.fsdecode(b"caf\xe9.png")
    Path(name).hardlink_to(pictures[0])
    assert main(["predict", NETWORK, name, "--csv", "out.csv"]) == 0
    assert b"\ncaf\xe9.png," in Path("out.csv").read_bytes().replace(b"\r", b"")


def test_only_features_need_a_linear_classifier(pictures):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    config = {"classes": ["a", "b"], "in_channels": 3, "image_size": [4, 4], "mean": None}
    config |= {"std": None}
    (found,) = predict(model, config, pictures)
    assert found.logits.shape == (5, 2)
    assert found.features is None
    with pytest.raises(ValueError, match="no linear layer of 2 outputs"):
        next(predict(model, config, pictures, features=True))


@pytest.mark.parametrize("name", ["resnet8", "preresnet8", "vgg11", "densenet40", "attention56"])
def test_the_classifier_of_every_network_is_its_last_layer(name):
    model = create_model(name, "se", num_classes=16)
    assert config_of(model)
    assert find_classifier(model, 16) is model.fc
    with pytest.raises(ValueError, match="no linear layer of 17 outputs"):
        find_classifier(model, 17)


def test_evaluate_puts_runs_side_by_side(capsys, tmp_path, cifar_folder):
    before = sorted(FOLDER.rglob("*"))
    runs = [NETWORK, "resnet20-eca-cifar10"]
    assert main(["evaluate", *runs, *cifar_folder]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{runs[0]} ┃ {runs[1]}", printed)
    assert re.search(r"images +│ 20 +│ 20 ", printed)
    for words in ("top1", "top5", "balanced accuracy", "expected calibration error"):
        assert re.search(rf"{words}.*│ [\d.e-]+ +│ [\d.e-]+ ", printed)
    assert f"of {runs[0]}: give --out FOLDER to get them" in printed
    assert main(["evaluate", *runs, *cifar_folder, "--out", "all"]) == 0
    assert sorted(FOLDER.rglob("*")) == before
    for run in runs:
        files = {"per_class.csv", "confusion.png", "mistakes.html"}
        assert {path.name for path in (tmp_path / "all" / run).iterdir()} == files
        assert [row["class"] for row in table(f"all/{run}/per_class.csv")] == CLASSES
    assert "photos/val/" in (tmp_path / "all" / NETWORK / "mistakes.html").read_text()


def test_nothing_is_written_if_one_of_the_runs_cannot_be_measured(capsys, tmp_path, cifar_folder):
    words = ["evaluate", NETWORK, "resnet20-spem-cifar100", *cifar_folder, "--out", "all"]
    assert main(words) == 2
    assert "other classes" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_two_runs_of_one_name_cannot_share_a_folder(capsys, tmp_path):
    for folder in ("a/run", "a-run"):
        (tmp_path / folder).mkdir(parents=True)
    assert main(["evaluate", "a/run", "a-run", "--out", "all"]) == 2
    assert "but a/run, a-run share one" in capsys.readouterr().err


def test_data_shows_how_a_folder_is_understood(capsys, tmp_path, cifar_folder):
    (tmp_path / "photos" / "old").mkdir()
    (tmp_path / "photos" / "val" / "cat" / "bad.png").write_bytes(b"text")
    paint(tmp_path / "photos" / "val" / "dog" / "x.png", (0, 99, 200))
    assert main(["data", "photos", "--validation", "none", "--image-size", "16"]) == 0
    printed = capsys.readouterr().out
    images = load_dataset("photos", validation=None, on_bad_image="list").train.images
    for part in (
        "data: photos, 10 classes; 100 training and 21 test images of 16×16 pixels",
        "train/ is for training, val/ is the test split",
        "files: 20×12 pixels, brought to 16×16",
        "not used: old/",
        "left out: photos/val/cat/bad.png cannot be read",
        "spem train stops at an image that cannot be read",
        "val/dog/x.png = train/airplane/0.png",
        f"mean [{round(images[:, 0].double().mean().item() / 255, 4)}",
        "the first training images: photos-batches.png",
    ):
        assert part in printed
    assert re.search(r"│ dog +│ 10 +│ - +│ 3 ", printed)
    assert re.search(r"│ all classes +│ 100 +│ - +│ 21 ", printed)
    with Image.open("photos-batches.png") as sheet:
        assert sheet.width > 800


def test_data_takes_the_keys_of_a_recipe_and_named_data(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("data: digits\nmean: [0.25]\nstd: [0.5]\ncrop: 2\n")
    assert main(["data", "digits", "--config", "own.yaml", "--out", "x.png"]) == 0
    assert "data: digits, 10 classes; 1,293 training" in capsys.readouterr().out
    assert (tmp_path / "x.png").exists()
    assert main(["data", "digit"]) == 2
    assert "there is no folder digit, nor a data set of that name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "crop 2, flip yes"),
        (
            {"trivial_augment": True, "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0},
            "flip yes, trivial_augment, random_erasing 0.5, mixup 0.2, cutmix 1",
        ),
    ],
    ids=["plain", "mixed"],
)
def test_the_sheet_shows_what_a_run_sees_first(keys, named, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("spem.train.preview.draw_sheet", lambda *given: drawn.append(given))
    recipe = Recipe(mean=[0.3], std=[0.4], crop=2, flip=True, batch_size=40, seed=3, **keys)
    dataset = load_dataset("digits")
    draw_first_batches(tmp_path / "x.png", recipe, dataset)
    batches = Batches(dataset.train, 40, mean=[0.3], std=[0.4], **augmentation(recipe))
    coming = batches.shuffled(order_rows(dataset.train, 3, 0))
    seen = []
    for step in range(2):  # as `Run.take_step` does
        torch.manual_seed(hash_seed(3, 0, step, 0))
        seen.append(Mixing(recipe, 10)(*next(coming)))
    images, targets = (torch.cat(parts)[:64] for parts in zip(*seen, strict=True))
    (_, found, captions, title) = drawn[0]
    if not keys:  # mixed pixels lie between whole levels
        assert torch.equal(normalise(found, [0.3], [0.4]), images)
    assert torch.equal(restore_pixels(images, [0.3], [0.4]), found)
    assert captions == [str(label) for label in to_labels(targets).tolist()]
    assert named in title
