"""Dropout and stochastic depth of other libraries' networks, each of which has its own names."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from spem._checks import is_number
from spem._messages import shorten

# By the prefix of a library: its arguments or keys of a configuration. A network has at most one of
# the names of each.
_NAMES = {
    "timm": {"dropout": ("drop_rate",), "drop_path": ("drop_path_rate",)},
    "torchvision": {
        "dropout": ("dropout", "drop_rate"),
        "drop_path": ("stochastic_depth_prob",),
    },
    "hf": {
        "dropout": ("dropout_rate", "classifier_dropout_prob", "hidden_dropout_prob"),
        "drop_path": ("drop_path_rate", "drop_connect_rate"),
    },
}


class NoDropoutError(ValueError):
    """A network does not have the dropout or the stochastic depth that is asked for."""


def check_drops(name: str, in_library: bool, drops: dict[str, float | None]) -> None:
    """Raise ValueError unless probabilities are in [0, 1), and those of a library's network.

    Args:
        name: of the network.
        in_library: whether it is of another library.
        drops: `dropout` and `drop_path`; None where nothing is asked for.
    """
    for key, value in drops.items():
        if value is None:
            continue
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{key} is {shorten(value)}, must be in [0, 1)")
        if not in_library:
            raise ValueError(
                f"{key} is {value}, but {shorten(name)} has none: leave it out, or name a network"
                " of another library, such as timm:resnet18"
            )


def build_dropping(
    prefix: str, name: str, drops: dict[str, float | None], build: Callable[..., nn.Module]
) -> nn.Module:
    """Build a network of timm or torchvision with dropout and stochastic depth, as it calls them.

    Args:
        prefix: of the library.
        name: of the network, with its prefix.
        drops: `dropout` and `drop_path`; None for what the library does.
        build: takes the library's arguments.

    Raises:
        NoDropoutError: the network does not have them.
    """
    asked = {key: value for key, value in drops.items() if value is not None}
    error = None
    for options in _spell(prefix, asked):
        try:
            model = build(**options)
        except TypeError as unexpected:
            if not any(option in str(unexpected) for option in options):
                raise
            error = unexpected
            continue
        for key, value in asked.items():
            if not _has_taken(model, key, value):
                raise _refuse(key, name)
        return model
    missing = [key for key in asked if any(n in str(error) for n in _NAMES[prefix][key])]
    raise _refuse(missing[0], name) from error


def _spell(prefix: str, asked: dict[str, float]) -> Iterator[dict[str, float]]:
    """Yield the arguments in each way in which a library's networks may call them."""
    for names in product(*(_NAMES[prefix][key] for key in asked)):
        yield dict(zip(names, asked.values(), strict=True))


def _has_taken(model: nn.Module, key: str, value: float) -> bool:
    """Return whether a network acts on an argument; some accept what they do not know."""
    if value == 0:
        return True
    others = [vars(m) for m in model.modules() if not isinstance(m, _DropoutNd)]
    if key == "dropout":
        rates = [m.p for m in model.modules() if isinstance(m, _DropoutNd)]
        return value in rates or any(each.get("drop_rate") == value for each in others)
    return any(each.get(name) for each in others for name in ("p", "drop_prob", "drop_path_rate"))


def configure_dropping(name: str, drops: dict[str, float | None], config: Any) -> None:
    """Set dropout and stochastic depth in the configuration of a network of Hugging Face.

    Raises:
        NoDropoutError: the network does not have them.
    """
    for key, value in drops.items():
        if value is not None:
            names = _NAMES["hf"][key]
            known = [n for n in names if isinstance(getattr(config, n, None), int | float)]
            if not known:
                raise _refuse(key, name)
            setattr(config, known[0], value)


def _refuse(key: str, name: str) -> NoDropoutError:
    what = {"dropout": "dropout", "drop_path": "stochastic depth"}[key]
    return NoDropoutError(f"{key} is given, but {name} has no {what}: leave {key} out")
