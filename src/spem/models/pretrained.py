"""The trained networks that come with the package: their names, folders and weights."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from spem._extras import needs_extra
from spem._messages import unknown
from spem.gates import GATES, gate_options

# Each network has a folder MODEL-GATE-DATA, which holds what `spem evaluate` and `spem predict`
# read of a run, and a model card.
FOLDER = Path(str(resources.files("spem.models") / "weights"))


def shipped_names() -> list[str]:
    """Return the names of the trained networks that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def shipped_name(config: dict[str, Any], data: str) -> str:
    """Return the name that a network trained on a data set has, whether it is shipped or not.

    Args:
        config: of the network, as `create_model` leaves it.
        data: name of the data set.
    """
    return f"{config['model']}-{config['gate'] or 'plain'}-{data}"


def find_run(run: str) -> Path:
    """Return the folder of a run, or that of a trained network that comes with the package.

    Args:
        run: a folder, which wins, or one of `shipped_names()`.

    Raises:
        FileNotFoundError: it is neither.
    """
    if not Path(run).is_dir():
        names = shipped_names()
        if run in names:
            return FOLDER / run
        known = ", ".join(names) or "none"
        raise FileNotFoundError(
            f"{run} holds no finished run: there is no such folder, nor a trained network of that"
            f" name; known: {known}"
        )
    return Path(run)


def shipped_config(name: str) -> dict[str, Any]:
    """Return the content of `config.json` of a trained network that comes with the package.

    Args:
        name: one of `shipped_names()`.

    Raises:
        ValueError: there is no such network.
    """
    if name not in (names := shipped_names()):
        raise unknown("pretrained network", name, names or ["none"])
    return json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))


def load_pretrained(model: nn.Module, config: dict[str, Any], data: str) -> None:
    """Load the weights and buffers that come with the package for a network and a data set.

    Args:
        model: the network, changed in place.
        config: of the network, as `create_model` leaves it.
        data: name of the data set.

    Raises:
        ImportError: the extra `train` is not installed.
        ValueError: nothing is shipped for this network, or it was built in another way.
    """
    with needs_extra("train"):
        from safetensors.torch import load_file
    name = shipped_name(config, data)
    stored = shipped_config(name)
    if config["num_classes"] != stored["num_classes"]:
        raise ValueError(
            f"num_classes is {config['num_classes']}, but {name} tells {stored['num_classes']}"
            " classes apart: load its state dict into a network of your own classes by"
            " spem.load_backbone(model, state_dict, ignore=['fc.*'])"
        )
    trained = _settings(stored)
    for key, value in _settings(config).items():
        if value != trained[key]:
            raise ValueError(f"{key} is {value!r}, but {name} was trained with {trained[key]!r}")
    model.load_state_dict(load_file(FOLDER / name / "model.safetensors"))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return all that decides the form of a network, with the defaults in their places."""
    gate, mask = config["gate"], config["mask"]
    settings = {key: config[key] for key in ("in_channels", "block", "placement")}
    settings["mask"] = None if mask is None or all(mask) else mask
    if gate is not None:
        settings["placement"] = settings["placement"] or GATES[gate].placement
        settings |= gate_options(gate) | config["gate_options"]
    return settings
