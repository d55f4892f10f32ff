"""Labelled images for training: digits, CIFAR and folders of images.

`load_dataset` reads a data set whole into memory, as bytes; `Batches` keeps a split on the device
and makes augmented, normalised batches there.
"""

from spem.data.batches import Batches, Split
from spem.data.dataset import load_dataset
from spem.data.images import prepare_image
from spem.data.splits import Dataset

__all__ = ["Batches", "Dataset", "Split", "load_dataset", "prepare_image"]
