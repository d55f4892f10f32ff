"""A trained network as two files: its weights in safetensors and its configuration in JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spem._extras import needs_extra
from spem._files import atomically, write_text
from spem.models import create_model
from spem.surgery.backbone import key_differences
from spem.surgery.config import NetworkConfig

with needs_extra("train"):
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file


def save_network(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a network's weights and buffers, and its configuration.

    Args:
        folder: the run's folder.
        model: the network.
        config: written as `config.json`.
    """
    # Copies, because safetensors takes neither shared memory nor another memory format.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    with atomically(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load_network(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a finished run.

    Args:
        folder: the run's folder.

    Returns:
        The network in eval mode on the CPU, and the content of `config.json`: the arguments of
        `create_model`, `classes` (names), `data`, `image_size` (height, width), `mean` and `std`
        (one number for each channel, for pixels in [0, 1]).

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: a file is damaged, or the run trained a network of the user's own.
    """
    config = _read_config(Path(folder) / "config.json")
    if config["model"] is None:
        raise ValueError(
            f"{folder} holds a network of your own: build it and call"
            " spem.export.load_weights(model, folder)"
        )
    with torch.random.fork_rng([]):  # its first weights are replaced: leave no trace of them
        model = create_model(**NetworkConfig.from_json(config).arguments())
    load_weights(model, folder)
    return model.eval(), config


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        inner = ", ".join(
            str(each.parent) for each in sorted(path.parent.glob("seed-*/config.json"))
        )
        raise FileNotFoundError(
            f"{path.parent} holds no finished run: {path.name} is missing"
            + (f"; those of its seeds lie in {inner}" if inner else "")
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    needed = ["model", "gate", "gate_options", "classes", "data", "image_size", "mean", "std"]
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path} is not that of a run: it lacks {', '.join(missing)}")
    return config


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load stored weights and buffers, all of which must match the network's.

    Args:
        model: the network, changed in place.
        source: a `.safetensors` file, or the folder of a finished run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names or shapes are not the network's.
    """
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    try:
        stored, own = load_file(path), model.state_dict()
    except SafetensorError as error:
        raise ValueError(f"the weight file {path} is damaged: {error}") from error
    if differences := key_differences(stored, own):
        raise ValueError(f"the weights of {path} are not those of the model: {differences}")
    model.load_state_dict(stored)
