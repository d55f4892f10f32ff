"""The first training images of a recipe as a picture, before anything is trained."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spem.data.batches import Batches, restore_pixels
from spem.data.sheet import draw_sheet
from spem.data.splits import Dataset
from spem.train.identity import repeat_name
from spem.train.loss import to_labels
from spem.train.mixing import Mixing
from spem.train.order import augmentation, hash_seed, order_rows, training_seed
from spem.train.recipe import Recipe

_SHOWN = 64


def draw_first_batches(path: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Write a contact sheet of the first augmented images that a run of a recipe trains on.

    Order and augmentation are those of the run: it sees the same images, normalised.

    Args:
        path: the PNG file.
        recipe: with mean and std.
        dataset: its data.
    """
    images, labels = _take_images(recipe, dataset)
    height, width = images.shape[2:]
    repeat = repeat_name(recipe.seed, recipe.fold, recipe.folds)
    title = (
        f"{dataset.name}: the first {len(labels)} training images of {repeat}, {width}×"
        f"{height} pixels, crop {recipe.crop}, flip {'yes' if recipe.flip else 'no'}"
    )
    title += ", trivial_augment" * recipe.trivial_augment
    title += f", resized_crop {recipe.resized_crop}" if recipe.resized_crop else ""
    for key in ("color_jitter", "random_erasing", "mixup", "cutmix"):
        title += f", {key} {getattr(recipe, key):g}" if getattr(recipe, key) else ""
    draw_sheet(path, images, [dataset.classes[label] for label in labels.tolist()], title)


def _take_images(recipe: Recipe, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the first augmented images, uint8 (N, C, H, W), and labels of a run's first epoch.

    The label of a mixed image is that of its largest share.
    """
    split, mix = dataset.train, Mixing(recipe, len(dataset.classes))
    statistics: dict[str, Any] = {"mean": recipe.mean, "std": recipe.std}
    size = _SHOWN if recipe.batch_size == "auto" else recipe.batch_size
    batches = Batches(split, size, **statistics, **augmentation(recipe))
    order = order_rows(split, training_seed(recipe), epoch=0)
    coming = batches.shuffled(order, seed=hash_seed(training_seed(recipe), 0, 1))
    steps = []
    with torch.random.fork_rng([]):
        for step in range(min(len(batches), -(-_SHOWN // size))):
            torch.manual_seed(hash_seed(training_seed(recipe), 0, step, 0))
            steps.append(mix(*next(coming)))
    images, targets = (torch.cat(parts)[:_SHOWN] for parts in zip(*steps, strict=True))
    return restore_pixels(images, **statistics), to_labels(targets)
