"""Weights as a safetensors file: read, checked, and loaded into a network."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._extras import needs_extra
from spem._files import check_path
from spem._messages import shorten
from spem.export.config import read_config
from spem.models.pretrained import bundled_names, find_run
from spem.surgery.backbone import key_differences

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
    path = find_weights(source)
    stored = read_weights(path)
    own = model.state_dict()
    other = [name for name, value in stored.items() if _differs_in_classes(value, own.get(name))]
    layers = {name.rpartition(".")[0] for name in other}
    if len(layers) != 1:
        load_state(model, path, stored)
        return None
    load_state(model, path, stored | {name: own[name] for name in other})
    return (
        f"the classifier {shorten(layers.pop())} starts anew: it has {len(own[other[0]])} classes,"
        f" that of {source} has {len(stored[other[0]])}"
    )


def _differs_in_classes(stored: Tensor, own: Tensor | None) -> bool:
    """Whether two parameters of a linear layer or a convolution differ in their outputs alone."""
    if own is None or stored.dim() != own.dim() or not own.dim():
        return False
    return stored.shape[0] != own.shape[0] and stored.shape[1:] == own.shape[1:]


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
    for name, value in stored.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} of {path} has values that are not finite")
    return stored


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
    model.load_state_dict(wanted)


def hash_state(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 sum of tensors, with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
