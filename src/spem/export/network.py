"""A trained network as two files: its weights in safetensors and its configuration in JSON."""

import json
import logging
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spem._extras import needs_extra
from spem._files import atomically, check_path, write_text
from spem.export.config import read_config
from spem.export.weights import (
    SUM,
    find_weights,
    hash_state,
    load_state,
    read_header,
    read_weights,
    refuse_others,
)
from spem.models import create_model
from spem.models.attached import rebuild
from spem.models.user_files import changed_files
from spem.surgery.attachment import attach
from spem.surgery.config import NetworkConfig, config_of
from spem.surgery.guard import attachment, is_attached
from spem.surgery.slots import find_gates

with needs_extra("train"):
    from safetensors import SafetensorError
    from safetensors.torch import save_file

_log = logging.getLogger("spem")
_IDENTITY = "identity"
_ATTACHMENT = "attachment"


def save_network(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a network's weights and buffers, and its configuration.

    Args:
        folder: the run's folder.
        model: the network.
        config: written as `config.json`, with what `attach` has put into a network of the user's or
            of another library.

    Raises:
        OSError: a file cannot be written.
    """
    config = {key: value for key, value in config.items() if key != _ATTACHMENT}
    own = config_of(model)
    if (own is None or own.library) and is_attached(model):
        config[_ATTACHMENT] = attachment(model)
    # Copies, because safetensors takes neither shared memory nor another memory format.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    mark = {SUM: hash_state(state)}
    if "identity" in config:  # of a run
        mark[_IDENTITY] = config[_IDENTITY]
    path = folder / "model.safetensors"
    with atomically(path) as temporary:
        try:
            save_file(state, temporary, mark)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load_network(
    folder: str | Path, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a finished run.

    Args:
        folder: the run's folder.
        model: a network like the one that was trained, into which the weights are loaded, for runs
            of networks that `create_model` does not build; None: the network is built. Where it has
            no gates and the run's had some of `attach`, these are attached first.

    Returns:
        The network in eval mode on the CPU, and the content of `config.json`: the arguments of
        `create_model`, `classes` (names), `data`, `image_size` (height, width), `mean` and `std`
        (one number for each channel, for pixels in [0, 1]). Where the run imported files, `import`
        has their SHA-256 sums by name.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: a file is damaged, the weights are not those of `model`, or the network is the
            user's own: it must be given as `model`, or its file be imported before.
    """
    config = read_config(check_path("folder", folder) / "config.json")
    path = find_weights(folder)
    mark, shapes = read_header(path)
    _check_run(path, mark, config)
    if model is None:
        if config["model"] is None:
            raise ValueError(
                f"{folder} holds a network of your own: build it and call"
                " spem.export.load_network(folder, model)"
            )
        model = _build_network(folder, config, path, shapes)
    if _ATTACHMENT in config and not any(find_gates(model)):
        attach(model, **config[_ATTACHMENT])
    _load(model, path, config)
    return model.eval(), config


def _load(model: nn.Module, path: Path, config: dict[str, Any]) -> None:
    """Load the weights of a run; an error names the version of another library that differs."""
    library, weights = config.get("library"), read_weights(path)
    try:
        load_state(model, path, weights)
    except ValueError as error:
        now = version(library["name"]) if library else None
        if not library or library["version"] == now:
            raise
        raise ValueError(
            f"{error} (trained with {library['name']} {library['version']}, this is {now})"
        ) from error


def _check_run(path: Path, mark: dict[str, str], config: dict[str, Any]) -> None:
    """Raise ValueError where weights are not those of the run that wrote the configuration."""
    if SUM not in mark:
        _log.warning("%s, of an earlier version, has no checksum and names no run", path)
    elif mark.get(_IDENTITY) != config.get(_IDENTITY):
        raise ValueError(
            f"{path} has the weights of another run than {path.parent / 'config.json'}"
        )


def _build_network(
    folder: str | Path, config: dict[str, Any], path: Path, shapes: dict[str, Tensor]
) -> nn.Module:
    """Return the network of a `config.json`; an error names the files that it may need.

    Nothing is allocated unless the weights are those of this network, where it is the library's.
    """
    needed = config.get("import") or {}
    for name in changed_files(needed):
        _log.warning("%s is not what it was when %s was trained", name, folder)
    stored = NetworkConfig.from_json(config)
    build = partial(create_model, **stored.arguments())
    if stored.library:
        build = partial(rebuild, stored, config.get(_ATTACHMENT))
    try:
        with torch.random.fork_rng([]):  # its first weights are replaced: leave no trace of them
            if not needed and not stored.library:  # others' networks may do without meta devices
                with torch.device("meta"):
                    refuse_others(path, shapes, build().state_dict())
            return build()
    except ValueError as error:
        if not needed:
            raise
        files = " ".join(f"--import {name}" for name in needed)
        raise ValueError(
            f"{folder} was trained with {files} (in Python: import it before): {error}"
        ) from error
