"""The configuration of a trained network: `config.json`."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from spem._messages import not_found, shorten
from spem._schema import (
    Bits,
    Calls,
    Count,
    Few,
    Interpolation,
    Names,
    Numbers,
    Options,
    Places,
    Positives,
    Ratio,
    Share,
    Sides,
    Text,
    Texts,
    Widths,
    read_json,
)

# Arguments of `attach` that no attachment has.
_NOT_STORED = {"model", "example", "optimizer", "mask", "dry_run"}


class _Attachment(TypedDict):
    """What `spem.attachment` returned; the options of the gates stand beside these keys."""

    gate: Text
    at: Texts
    init: Text | None
    channels: Widths
    version: NotRequired[Text]
    then: NotRequired[Calls]


class _Library(TypedDict):
    """The library that a network is of; of one of Hugging Face's, its configuration."""

    name: Text
    version: Text
    config: NotRequired[Options]


_Imported = TypedDict("_Imported", {"import": NotRequired[Names]})


class RunConfig(_Imported):
    """What `config.json` holds: the arguments of `create_model`, the classes and the images."""

    model: Text | None
    gate: Text | None
    gate_options: Options
    num_classes: NotRequired[Count]
    in_channels: NotRequired[Few]
    block: NotRequired[Text | None]
    placement: NotRequired[Text | None]
    mask: NotRequired[Bits | None]
    at: NotRequired[Places | None]
    dropout: NotRequired[Share | None]
    drop_path: NotRequired[Share | None]
    library: NotRequired[_Library]
    attachment: NotRequired[_Attachment]
    identity: NotRequired[Text]
    classes: Texts
    data: Text
    image_size: Sides
    interpolation: NotRequired[Interpolation]
    crop_ratio: NotRequired[Ratio]
    mean: Numbers
    std: Positives


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a run's `config.json`, checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its content is not allowed.
    """
    if not path.is_file():
        inner = ", ".join(
            str(each.parent) for each in sorted(path.parent.glob("seed-*/config.json"))
        )
        error = not_found(path.parent, "finished run", path.name)
        raise FileNotFoundError(f"{error}; those of its seeds lie in {inner}") if inner else error
    config = read_json(path, RunConfig)
    attached = config.get("attachment", {})
    channels, classes = config.get("in_channels", 3), config["classes"]
    for wrong, key, allowed in (
        (not classes, "classes", "the names of the classes"),
        (_NOT_STORED & attached.keys(), "attachment", "what spem.attachment returned"),
        (len(config["mean"]) != len(config["std"]), "std", "as long as mean"),
        (
            config["model"] is not None and len(config["mean"]) != channels,
            "mean",
            f"a list of {channels} numbers, one for each channel",
        ),
        (
            config.get("num_classes", len(classes)) != len(classes),
            "classes",
            f"{config.get('num_classes')} names, as num_classes says",
        ),
    ):
        if wrong:
            raise ValueError(f"{key} of {path} must be {allowed}, got {shorten(config[key])}")
    return config
