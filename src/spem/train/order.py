"""The order of the images of an epoch, and the random numbers of a step."""

import numpy as np
import torch
from torch import Tensor


def hash_seed(seed: int, *position: int) -> int:
    """Return a seed of 64 bits for one position in a run.

    Args:
        seed: the run's.
        position: any whole numbers, such as epoch and step; other positions give unrelated seeds.
    """
    return int(np.random.SeedSequence(seed, spawn_key=position).generate_state(1, np.uint64)[0])


def order_rows(images: int, seed: int, epoch: int) -> Tensor:
    """Return the row numbers of the training images in the order of an epoch, (images,)."""
    shuffle = torch.Generator().manual_seed(hash_seed(seed, epoch))
    return torch.randperm(images, generator=shuffle)
