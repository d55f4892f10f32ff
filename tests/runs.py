"""A small network, a short recipe for the digits, and what the tests of training read of a run."""

import csv

import torch
from torch import nn

from spem.train.recipe import Recipe

# Three steps an epoch: of 500, 500 and 293 images.
SMALL = Recipe(
    epochs=2,
    batch_size=500,
    crop=1,
    warmup_epochs=0.5,
    threads=1,
    device="cpu",
    progress=False,
)
TIMES = ("images_per_second", "seconds")


class Net(nn.Module):
    """A classifier without norms, with dropout, and with a call before each forward pass."""

    def __init__(self, classes=10, dropout=0.1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(8 * 9, classes)
        self.before = lambda: None

    def forward(self, x):
        self.before()
        return self.head(self.body(x).flatten(1))


def net(**options):
    torch.manual_seed(1)
    return Net(**options)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_times(folder):
    return [{key: row[key] for key in row if key not in TIMES} for row in rows(folder)]


def check_same(one, other):
    """Two runs agree bit for bit in all but their times."""
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert without_times(one.folder) == without_times(other.folder)
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
