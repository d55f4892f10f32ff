"""Labelled images for training: digits, CIFAR, and folders, tables or tar files of images.

`load_dataset` reads a data set into memory, as bytes, or leaves a large one in its files; `Batches`
makes augmented, normalised batches of a split on the device.
"""

from spem.data.batches import Batches, Split
from spem.data.dataset import load_dataset
from spem.data.images import prepare_image
from spem.data.splits import Dataset

__all__ = ["Batches", "Dataset", "Split", "load_dataset", "prepare_image"]
