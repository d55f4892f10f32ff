"""The bundled weights: trained networks that are part of the package, by name."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from spem._extras import needs_extra
from spem._messages import shorten, unknown
from spem.gates import GATES, gate_options
from spem.surgery.config import NetworkConfig

# Each network has a folder MODEL-GATE-DATA, which holds what `spem evaluate` and `spem predict`
# read of a run folder, and a model card.
FOLDER = Path(str(resources.files("spem.models") / "weights"))


def bundled_names() -> list[str]:
    """Return the names of all bundled networks."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def bundled_name(model: str, gate: str | None, data: str) -> str:
    """Return the name under which a network trained on a data set is bundled, if it is.

    Args:
        model: name of the network.
        gate: name of its gate, or None.
        data: name of the data set.
    """
    return f"{model}-{gate or 'plain'}-{data}"


def find_run(run: str) -> Path:
    """Return the folder of a run or of a bundled network.

    Args:
        run: a folder, which wins, or one of `bundled_names()`.

    Raises:
        FileNotFoundError: it is neither.
    """
    if not Path(run).is_dir():
        names = bundled_names()
        if run in names:
            return FOLDER / run
        known = ", ".join(names) or "none"
        raise FileNotFoundError(
            f"there is no folder {run}, nor a bundled network of that name; known: {known}"
        )
    return Path(run)


def bundled_config(name: str) -> dict[str, Any]:
    """Return the content of `config.json` of a bundled network.

    Args:
        name: one of `bundled_names()`.

    Raises:
        ValueError: there is no such network.
    """
    if name not in (names := bundled_names()):
        raise unknown("pretrained network", name, names or ["none"])
    return json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))


def load_pretrained(model: nn.Module, config: NetworkConfig, data: str) -> None:
    """Load the bundled weights and buffers of a network trained on a data set.

    Args:
        model: the network, changed in place.
        config: of the network.
        data: name of the data set.

    Raises:
        ImportError: the extra `train` is not installed.
        ValueError: no weights are bundled for this network, or it was built in another way.
    """
    with needs_extra("train"):
        from safetensors.torch import load_file
    name = bundled_name(config.model, config.gate, data)
    stored = NetworkConfig.from_json(bundled_config(name))
    if config.num_classes != stored.num_classes:
        raise ValueError(
            f"num_classes is {config.num_classes}, but {name} has {stored.num_classes}"
            " classes: load its state dict into a network of your own classes by"
            " spem.load_backbone(model, state_dict, ignore=['fc.*'])"
        )
    trained = _find_settings(stored)
    for key, value in _find_settings(config).items():
        if value != trained[key]:
            raise ValueError(
                f"{key} is {shorten(value)}, but {name} was trained with {shorten(trained[key])}"
            )
    model.load_state_dict(load_file(FOLDER / name / "model.safetensors"))


def _find_settings(config: NetworkConfig) -> dict[str, Any]:
    """Return all that decides the form of a network, defaults written out."""
    gate, mask, placement = config.gate, config.mask, config.placement
    settings = {"in_channels": config.in_channels, "block": config.block, "placement": placement}
    settings["mask"] = None if mask is None or all(mask) else mask
    if gate is not None:
        settings["placement"] = placement or GATES[gate].placement
        settings |= gate_options(gate) | config.gate_options
    return settings
