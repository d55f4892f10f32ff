"""Weights as a safetensors file: read, checked, and loaded into a network."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._extras import needs_extra
from spem._files import check_path
from spem.export.config import read_config
from spem.models.libraries import network_of
from spem.models.pretrained import bundled_names, find_run
from spem.surgery.backbone import key_differences, load_tensors
from spem.surgery.start import Started, start_from_state

with needs_extra("train"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

# What the metadata of a weight file call the sum of its tensors.
SUM = "sha256"


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
    check_module(model)
    path = find_weights(source)
    load_state(model, path, read_weights(path))


def start_from(model: nn.Module, source: str | Path) -> Started:
    """Load stored weights and buffers, but for a classifier of another number of classes.

    The weights may be those of the same network without gates, or of one for images of three
    channels; see `spem.surgery.start`.

    Args:
        model: the network, changed in place.
        source: see `load_weights`; or a `.pth`, `.pt` or `.bin` file with a state dict of PyTorch.

    Returns:
        What starts anew.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds no state dict, or anything else does not fit.
    """
    check_module(model)
    path = find_weights(source)
    stored = read_weights(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    try:
        return start_from_state(network_of(model), stored, str(source))
    except ValueError as error:
        raise ValueError(
            f"the weights of {path} are not those of the model{_of_network(path)}: {error}"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of `torch.save`, or the only one in a whole checkpoint.

    No object is made but tensors and plain containers, so that nothing in the file can run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: the file may hold anything
        raise ValueError(
            f"{path} holds no state dict that can be read safely: save model.state_dict()"
        ) from error
    states = [s for s in (content, *_values(content)) if isinstance(s, dict) and _is_state(s)]
    if len(states) != 1:
        raise ValueError(
            f"{path} holds {len(states) or 'no'} state dicts, must hold one: save"
            " model.state_dict()"
        )
    _check_finite(path, states[0])
    return states[0]


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, dict) else []


def _is_state(content: dict[Any, Any]) -> bool:
    """Return whether a mapping maps names to tensors."""
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def find_weights(source: str | Path) -> Path:
    """Return the weight file of a folder, a bundled network, or that is named itself."""
    path = check_path("source", source)
    if not path.exists() and str(source) in bundled_names():
        path = find_run(str(source))
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no weight file {path}; bundled networks: {', '.join(bundled_names())}"
        )
    return path


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata of a weight file, and its tensors without their values, by name."""
    try:
        with safe_open(path, "pt") as file:
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            mark = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"the weight file {path} is damaged: {error}") from error
    return mark, {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, checked against the sum in its metadata."""
    mark, _ = read_header(path)
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the weight file {path} is damaged: {error}") from error
    if SUM in mark and mark[SUM] != hash_state(stored):
        raise ValueError(f"the weight file {path} is damaged: its content fails its checksum")
    _check_finite(path, stored)
    return stored


def _check_finite(path: Path, state: dict[str, Tensor]) -> None:
    """Raise ValueError unless all numbers of a state dict are finite."""
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} of {path} has values that are not finite")


def _of_network(path: Path) -> str:
    """Return which network a run's weights belong to, where its folder says so."""
    try:
        config = read_config(path.with_name("config.json"))
    except (OSError, ValueError):
        return ""
    if config["model"] is None:
        return ""
    gate = f"with the gate {config['gate']}" if config["gate"] else "without gates"
    return f", but of {config['model']} {gate}"


def refuse_others(path: Path, wanted: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise ValueError where the names or shapes of weights are not those of a network."""
    if differences := key_differences(wanted, own):
        raise ValueError(
            f"the weights of {path} are not those of the model{_of_network(path)}: {differences}"
        )


def load_state(model: nn.Module, path: Path, wanted: dict[str, Tensor]) -> None:
    """Load the wanted tensors; where they do not fit, say what differs."""
    own = model.state_dict()
    refuse_others(path, wanted, own)
    for name, value in wanted.items():
        if value.dtype != own[name].dtype:
            raise ValueError(f"{name} of {path} is {value.dtype}, must be {own[name].dtype}")
    load_tensors(model, wanted)


def hash_state(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 sum of tensors, with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
