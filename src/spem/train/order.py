"""The order of the images of an epoch, its batches, and the random numbers of a step."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spem._extras import needs_extra
from spem.data.batches import Batches, Split
from spem.data.shards import Shards
from spem.data.splits import Dataset
from spem.data.stream import Pictures
from spem.train.recipe import Recipe

with needs_extra("train"):
    from lightning_fabric import Fabric


def hash_seed(seed: int, *position: int) -> int:
    """Return a seed of 64 bits for one position in a run.

    Args:
        seed: the run's.
        position: any whole numbers, such as epoch and step; other positions give unrelated seeds.
    """
    return int(np.random.SeedSequence(seed, spawn_key=position).generate_state(1, np.uint64)[0])


def training_seed(recipe: Recipe) -> int:
    """Return the seed of the initial weights, the order and the augmentation of a run.

    It is the recipe's. The folds of one seed have one each, so that their spread is also that of
    the training and not of the images alone.
    """
    if recipe.fold is None:
        return recipe.seed
    return hash_seed(recipe.seed, recipe.fold) % 2**32


def order_rows(split: Split, seed: int, epoch: int) -> Tensor:
    """Return the row numbers of the training images in the order of an epoch, (N,).

    Images in tar files are ordered by `Shards.order`, so that these are read from begin to end.
    """
    own = hash_seed(seed, epoch)
    if isinstance(split.images, Pictures) and isinstance(split.images.files, Shards):
        return split.images.files.order(own)
    shuffle = torch.Generator().manual_seed(own)
    return torch.randperm(len(split.labels), generator=shuffle)


def augmentation(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `Batches` that say how a recipe augments its training images."""
    keys = ("crop", "flip", "trivial_augment", "random_erasing", "resized_crop", "color_jitter")
    return {key: getattr(recipe, key) for key in keys}


def split_batches(fabric: Fabric, recipe: Recipe, dataset: Dataset) -> dict[str, Batches]:
    """Return this process's batches of the train, test and, if there is one, validation split."""
    make = partial(
        Batches,
        mean=recipe.mean,
        std=recipe.std,
        device=fabric.device,
        channels_last=recipe.channels_last,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    batches = {
        "train": make(dataset.train, recipe.batch_size, **augmentation(recipe)),
        "test": make(dataset.test),
    }
    if dataset.validation is not None:
        batches["validation"] = make(dataset.validation)
    return batches
