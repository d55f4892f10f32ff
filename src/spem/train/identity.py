"""Which run a file belongs to: a hash of the recipe keys that decide a run's results."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from spem.train.recipe import Recipe

# The keys that a resumed run may change: where and how it computes, not what. `init` acts through
# `gate_options`, and files to import are told apart by their sums.
FREE_KEYS = ("data_dir", "download", "device", "threads", "progress", "logger", "init", "import_")
FREE_KEYS += ("checkpoint_minutes", "loader", "workers")
# What a run finds out where its recipe leaves it open.
FOUND_KEYS = ("mean", "std", "batch_size")
# Keys that recipes of earlier versions lack, each with the value that means what these did: with it
# a run keeps the key and the identity that it had there.
NEW_KEYS: dict[str, Any] = {"on_bad_image": "raise", "on_nonfinite": "stop"}
NEW_KEYS |= {"at": None, "pretrained": False}
NEW_KEYS |= {"optimizer": "sgd", "lr_factors": {}, "layer_decay": None}
NEW_KEYS |= {"interpolation": None, "crop_ratio": None}
NEW_KEYS |= {"freeze": None, "freeze_epochs": None}
NEW_KEYS |= {"folds": None, "fold": None}
NEW_KEYS |= {"loss": "ce", "class_weights": None}
NEW_KEYS |= {"trivial_augment": False, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
NEW_KEYS |= {"resized_crop": None, "color_jitter": 0.0}
NEW_KEYS |= {"dropout": None, "drop_path": None, "patience": None}


def deciding_keys(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe keys that decide a run's results, without where and how it computes."""
    return {
        key: value
        for key, value in asdict(recipe).items()
        if key not in FREE_KEYS and not (key in NEW_KEYS and value == NEW_KEYS[key])
    }


def record_key(recipe: Recipe) -> str:
    """Return the key of a run's record and folder: 16 hexadecimal digits of a hash of its recipe.

    Only `deciding_keys` enter the hash, so the same run on another machine has the same key.
    """
    return _hash(deciding_keys(recipe))


def identity(recipe: Recipe) -> str:
    """Return what the files of a run carry: as `record_key`, but for the number of epochs.

    A run may go on to more epochs than it began with.
    """
    keys = deciding_keys(recipe)
    del keys["epochs"]
    return _hash(keys)


def repeat_name(seed: int, fold: int | None, folds: int | None) -> str:
    """Return what tells a run from the others of its row: "seed 3" or "fold 2 of 5"."""
    return f"seed {seed}" if fold is None else f"fold {fold} of {folds}"


def _hash(keys: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]
