"""The recipe and the study of ImageNet on a few small JPEGs, streamed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from spem.cli import main
from spem.compare.records import Ledger
from spem.compare.study import load_study
from spem.data.cifar import LAYOUTS, find, read

ROOT = Path(__file__).parents[2]


def pictures():
    """Return images (N, H, W, 3) and labels: of CIFAR-10 where it is there, else digits."""
    layout = LAYOUTS["cifar10"]
    if (source := find(layout, ROOT / "data")) is not None:
        _, test, _ = read(layout, source)
        return test.images.permute(0, 2, 3, 1).numpy(), test.labels.numpy()
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8).repeat(3, 3)
    return images, labels


@pytest.fixture
def archive(tmp_path):
    """JPEGs of 64 pixels in ImageNet's layout: three classes of 40 for training, 15 for test."""
    images, labels = pictures()
    for label in range(3):
        own = images[labels == label][:55]
        for number, pixels in enumerate(own):
            folder = tmp_path / "archive" / ("train" if number < 40 else "val") / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number}.jpg")
    return str(tmp_path / "archive")


def test_the_study_of_imagenet_in_small(archive, tmp_path):
    out = str(tmp_path / "out")
    words = ["--study", "imagenet-attention", "--small", "--data", archive, "--out", out]
    words += ["--device", "cpu", "--threads", "1", "--no-progress", "--no-costs"]
    assert main(["compare", *words]) == 0
    records = Ledger(tmp_path / "out").records.values()
    assert [record["gate"] for record in records] == ["plain", "se", "spem"]
    for record in records:
        assert record["summary"]["images"] == {"train": 120, "test": 45}
        assert record["summary"]["images_sum"].startswith("names ")
        assert record["recipe"]["resized_crop"] == [0.08, 1.0]
    assert main(["report", out]) == 0


def test_the_study_itself_is_of_resnet50():
    runs = load_study("imagenet-attention").plan()
    assert len(runs) == 9
    recipe = runs[0].recipe
    assert (recipe.model, recipe.image_size, recipe.batch_size) == ("timm:resnet50", 160, 2048)
    assert (recipe.loss, recipe.mixup, recipe.cutmix, recipe.epochs) == ("bce", 0.1, 1.0, 100)
