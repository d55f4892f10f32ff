"""A trained network as two files: its weights in safetensors and its configuration in JSON."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spem._extras import needs_extra
from spem._files import atomically, write_text
from spem._messages import not_found
from spem.models import create_model
from spem.models.pretrained import bundled_names, find_run
from spem.models.user_files import changed_files
from spem.surgery.backbone import key_differences
from spem.surgery.config import NetworkConfig

with needs_extra("train"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file

_log = logging.getLogger("spem")
# What the header of a weight file says of it.
_SUM, _IDENTITY = "sha256", "identity"


def save_network(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a network's weights and buffers, and its configuration.

    Args:
        folder: the run's folder.
        model: the network.
        config: written as `config.json`.

    Raises:
        OSError: a file cannot be written.
    """
    # Copies, because safetensors takes neither shared memory nor another memory format.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    mark = {_SUM: _hash_state(state)}
    if "identity" in config:  # of a run
        mark[_IDENTITY] = config[_IDENTITY]
    path = folder / "model.safetensors"
    with atomically(path) as temporary:
        try:
            save_file(state, temporary, mark)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _hash_state(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 sum of tensors, with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_network(
    folder: str | Path, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network of a finished run.

    Args:
        folder: the run's folder.
        model: a network like the one that was trained, into which the weights are loaded, for runs
            of networks that `create_model` does not build; None: the network is built.

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
    config = _read_config(Path(folder) / "config.json")
    path, stored, mark = _read_weights(folder)
    _check_run(path, mark, config)
    if model is not None:
        _load(model, path, stored)
        return model.eval(), config
    if config["model"] is None:
        raise ValueError(
            f"{folder} holds a network of your own: build it and call"
            " spem.export.load_network(folder, model)"
        )
    model = _build_network(folder, config)
    _load(model, path, stored)
    return model.eval(), config


def _check_run(path: Path, mark: dict[str, str], config: dict[str, Any]) -> None:
    """Raise ValueError where weights are not those of the run that wrote the configuration."""
    if _SUM not in mark:
        _log.warning("%s, of an earlier version, has no checksum and names no run", path)
    elif mark.get(_IDENTITY) != config.get(_IDENTITY):
        raise ValueError(
            f"{path} has the weights of another run than {path.parent / 'config.json'}"
        )


def _build_network(folder: str | Path, config: dict[str, Any]) -> nn.Module:
    """Return the network of a `config.json`; an error names the files that it may need."""
    needed = config.get("import") or {}
    for name in changed_files(needed):
        _log.warning("%s is not what it was when %s was trained", name, folder)
    try:
        with torch.random.fork_rng([]):  # its first weights are replaced: leave no trace of them
            return create_model(**NetworkConfig.from_json(config).arguments())
    except ValueError as error:
        if not needed:
            raise
        files = " ".join(f"--import {name}" for name in needed)
        raise ValueError(
            f"{folder} was trained with {files} (in Python: import it before): {error}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        inner = ", ".join(
            str(each.parent) for each in sorted(path.parent.glob("seed-*/config.json"))
        )
        error = not_found(path.parent, "finished run", path.name)
        raise FileNotFoundError(f"{error}; those of its seeds lie in {inner}") if inner else error
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {str(error)[:200]}") from error
    needed = ["model", "gate", "gate_options", "classes", "data", "image_size", "mean", "std"]
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path} is not that of a run: it lacks {', '.join(missing)}")
    return config


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load stored weights and buffers, all of which must match the network's.

    Args:
        model: the network, changed in place.
        source: a `.safetensors` file, the folder of a finished run, or the name of a bundled
            network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names or shapes are not the network's.
    """
    path, stored, _ = _read_weights(source)
    _load(model, path, stored)


def start_from(model: nn.Module, source: str | Path) -> str | None:
    """Load stored weights and buffers, but for a classifier of another number of classes.

    Args:
        model: the network, changed in place; its own classifier stays if the stored one does not
            fit.
        source: see `load_weights`.

    Returns:
        A sentence that says so if the classifier stays; None where all was loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or anything but the classifier does not fit.
    """
    path, stored, _ = _read_weights(source)
    own = model.state_dict()
    other = [name for name, value in stored.items() if _differs_in_classes(value, own.get(name))]
    layers = {name.rpartition(".")[0] for name in other}
    if len(layers) != 1:
        _load(model, path, stored)
        return None
    _load(model, path, stored | {name: own[name] for name in other})
    return (
        f"the classifier {layers.pop()!r} starts anew: it has {len(own[other[0]])} classes, that of"
        f" {source} has {len(stored[other[0]])}"
    )


def _differs_in_classes(stored: Tensor, own: Tensor | None) -> bool:
    """Whether two parameters of a linear layer or a convolution differ in their outputs alone."""
    if own is None or stored.dim() != own.dim() or not own.dim():
        return False
    return stored.shape[0] != own.shape[0] and stored.shape[1:] == own.shape[1:]


def _read_weights(source: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """Return the path, the checked tensors and the header of a weight file."""
    path = Path(source)
    if not path.exists() and str(source) in bundled_names():
        path = find_run(str(source))
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no weight file {path}; bundled networks: {', '.join(bundled_names())}"
        )
    try:
        with safe_open(path, "pt") as file:
            mark = file.metadata() or {}
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the weight file {path} is damaged: {error}") from error
    if _SUM in mark and mark[_SUM] != _hash_state(stored):
        raise ValueError(f"the weight file {path} is damaged: its content fails its checksum")
    for name, value in stored.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} of {path} has values that are not finite")
    return path, stored, mark


def _of_network(path: Path) -> str:
    """Return which network a run's weights belong to, where its folder says so."""
    try:
        config = _read_config(path.with_name("config.json"))
    except (OSError, ValueError):
        return ""
    if config["model"] is None:
        return ""
    gate = f"with the gate {config['gate']}" if config["gate"] else "without gates"
    return f", but of {config['model']} {gate}"


def _load(model: nn.Module, path: Path, wanted: dict[str, Tensor]) -> None:
    """Load the wanted tensors; where they do not fit, say what differs."""
    own = model.state_dict()
    if differences := key_differences(wanted, own):
        raise ValueError(
            f"the weights of {path} are not those of the model{_of_network(path)}: {differences}"
        )
    for name, value in wanted.items():
        if value.dtype != own[name].dtype:
            raise ValueError(f"{name} of {path} is {value.dtype}, must be {own[name].dtype}")
    model.load_state_dict(wanted)
