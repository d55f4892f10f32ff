"""Labelled images: digits, CIFAR and image folders, as batches in memory."""

from spem.data.batches import Batches
from spem.data.dataset import Dataset, Split, load_dataset, prepare_image

__all__ = ["Batches", "Dataset", "Split", "load_dataset", "prepare_image"]
