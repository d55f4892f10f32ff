"""What a network was trained to see: mean, std, size and cut of its pictures."""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_args

from torch import nn

from spem._schema import (
    Flag,
    Interpolation,
    Natural,
    Numbers,
    Pixels,
    Plain,
    Positives,
    Ratio,
    check_value,
    is_whole,
    read_json,
)
from spem.models.libraries import first_sentence, split_name

_FILE = "preprocessor_config.json"
# Pillow's numbers, by which Hugging Face's files name these.
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TYPES = {"mean": Numbers, "std": Positives, "image_size": Pixels}
_TYPES |= {"interpolation": Interpolation, "crop_ratio": Ratio}


class _Processor(TypedDict, total=False):
    """What is read of `preprocessor_config.json`; other keys are ignored."""

    size: Plain
    crop_size: Plain
    crop_pct: Ratio | None
    do_center_crop: Flag | None
    image_mean: Numbers
    image_std: Positives
    resample: Natural


class Preprocessing(NamedTuple):
    """How pictures are prepared for a network; None: it does not say.

    Attributes:
        mean: subtracted from pixels in [0, 1], one number per channel.
        std: divides them afterwards, one number per channel.
        image_size: side of the images, in pixels.
        interpolation: by which the pictures are resized: nearest, bilinear, bicubic or lanczos.
        crop_ratio: of the side to the shorter side of the resized picture, out of whose centre the
            image is cut.
    """

    mean: list[float] | None = None
    std: list[float] | None = None
    image_size: int | None = None
    interpolation: str | None = None
    crop_ratio: float | None = None

    def check(self) -> None:
        """Raise ValueError, naming an attribute, unless all are allowed."""
        for key, hint in _TYPES.items():
            check_value(key, getattr(self, key), hint | None)  # pyright: ignore
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std must be given together, with as many numbers each")

    def for_channels(self, channels: int) -> "Preprocessing":
        """Return it for another number of channels, all of which get the averages of mean and std.

        A first convolution for other channels starts with the kernels of all colours, too.
        """
        if self.mean is None or self.std is None or len(self.mean) == channels:
            return self
        mean, std = (round(sum(values) / len(values), 4) for values in (self.mean, self.std))
        return self._replace(mean=[mean] * channels, std=[std] * channels)


@cache
def library_preprocessing(name: str) -> Preprocessing:
    """Return how another library prepares the pictures for a network of its own.

    Of timm's it is the configuration of its pretrained weights, also where other weights are
    loaded; timm's `crop_mode` squash (a few networks, transformers most of them) is taken for a cut
    at the centre. Of torchvision's, the transforms of its default weights; of Hugging Face's, the
    file `preprocessor_config.json`.

    Args:
        name: the prefix of the library, a colon, and the library's own name for the network.

    Raises:
        ValueError: the library or its network is not known.
        ImportError: the library is not installed.
        OSError: the file of a network of Hugging Face cannot be fetched.
    """
    prefix, own = split_name(name)
    if prefix == "timm":
        return _ask_timm(own)
    if prefix == "torchvision":
        return _ask_torchvision(own)
    return _ask_transformers(own)


def stored_preprocessing(model: nn.Module) -> Preprocessing:
    """Return how the pictures for a network are prepared that says so itself, as those of timm."""
    stored = getattr(model, "pretrained_cfg", None)
    if not isinstance(stored, dict) or "timm" not in sys.modules:
        return Preprocessing()
    return _read_timm(stored)


def _ask_timm(own: str) -> Preprocessing:
    return _read_timm(import_module("timm").get_pretrained_cfg(own).to_dict())


def _read_timm(stored: dict[str, Any]) -> Preprocessing:
    """Return what the configuration of timm's pretrained weights says."""
    found = import_module("timm.data").resolve_data_config(pretrained_cfg=stored)
    return _describe(
        found["mean"],
        found["std"],
        min(found["input_size"][1:]),
        found["interpolation"],
        found["crop_pct"],
    )


def _ask_torchvision(own: str) -> Preprocessing:
    weights = [*import_module("torchvision").models.get_model_weights(own)]
    if not weights:
        return Preprocessing()
    found = type(weights[0]).DEFAULT.transforms()
    size, resized = found.crop_size[0], found.resize_size[0]
    return _describe(found.mean, found.std, size, found.interpolation.value, size / resized)


def _ask_transformers(own: str) -> Preprocessing:
    try:
        path = _find_file(own)
    except OSError as error:
        raise ConnectionError(
            f"{_FILE} of hf:{own} cannot be fetched: {first_sentence(error)}; fetch it where there"
            " is a network, or name mean, std, image_size, interpolation and crop_ratio"
        ) from error
    if path is None:
        return Preprocessing()
    stored = read_json(path, _Processor)
    side, cut = _side(stored.get("size")), _side(stored.get("crop_size"))
    if side is None:
        return Preprocessing(stored.get("image_mean"), stored.get("image_std"))
    size, ratio = side, stored.get("crop_pct") or 1.0
    if cut and stored.get("do_center_crop"):
        size, ratio = cut, cut / side
    mean, std = stored.get("image_mean", [0.5] * 3), stored.get("image_std", [0.5] * 3)
    return _describe(mean, std, size, _PILLOW.get(stored.get("resample", 2)), ratio)


def _find_file(own: str) -> Path | None:
    """Return the file in which Hugging Face keeps the preprocessing of a network, if it has one."""
    if Path(own).is_dir():
        return path if (path := Path(own, _FILE)).is_file() else None
    hub = import_module("huggingface_hub")
    try:
        return Path(hub.hf_hub_download(own, _FILE))
    except hub.errors.LocalEntryNotFoundError:  # a kind of the next error, but for no network
        raise
    except hub.errors.EntryNotFoundError:
        return None


def _side(size: Any) -> int | None:
    """Return the side that a size stands for: a number, or a mapping of several kinds."""
    if isinstance(size, dict):
        sides = [size[key] for key in ("shortest_edge", "height", "width") if key in size]
        size = min(sides, default=None)
    return size if is_whole(size) else None


def _describe(
    mean: Any, std: Any, size: int, interpolation: Any, crop_ratio: float
) -> Preprocessing:
    """Return a library's values in the types of a recipe's keys."""
    known = interpolation in get_args(Interpolation)
    return Preprocessing(
        [float(value) for value in mean],
        [float(value) for value in std],
        int(size),
        interpolation if known else "bilinear",
        min(float(crop_ratio), 1.0),
    )
