"""The configuration of a network: the arguments of `create_model` that built it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from torch import nn

from spem._checks import check_module


@dataclass(frozen=True)
class NetworkConfig:
    """The arguments with which `create_model` builds a network, and the head of `config.json`.

    A change makes a new one: `dataclasses.replace(config, mask=[1, 0])`.

    Attributes:
        model: name of the network.
        gate: a key of `GATES`, or None.
        num_classes, in_channels, block, placement, mask: see `create_model`.
        gate_options: keyword arguments of the gate.
        at: see `create_model`.
        dropout, drop_path: see `create_model`.
        library: name and version of the library that a network is of, where it is another one;
            of Hugging Face's networks also their configuration.
    """

    model: str
    gate: str | None = None
    num_classes: int = 10
    in_channels: int = 3
    block: str | None = None
    placement: str | None = None
    mask: list[int] | None = None
    gate_options: dict[str, Any] = field(default_factory=dict)
    at: str | list[str] | None = None
    dropout: float | None = None
    drop_path: float | None = None
    library: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the configuration in the content of a `config.json`; its other keys are not read.

        Keys that it lacks take their defaults.
        """
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def to_json(self) -> dict[str, Any]:
        """Return the content for a `config.json`, with its keys in their usual order.

        What only networks of others have (`at`, `dropout`, `drop_path` and `library`) is left out
        where it is None.
        """
        others = ("at", "dropout", "drop_path", "library")
        absent = {name for name in others if getattr(self, name) is None}
        return {key: value for key, value in asdict(self).items() if key not in absent}

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for `create_model`."""
        arguments = self.to_json()
        arguments.pop("library", None)
        return {"name": arguments.pop("model"), **arguments.pop("gate_options"), **arguments}

    def without_gates(self) -> Self:
        """Return the configuration of the same network without gates."""
        return replace(self, gate=None, placement=None, at=None, mask=None, gate_options={})


def config_of(model: nn.Module) -> NetworkConfig | None:
    """Return the attribute `config` that `create_model` gave a network; None for other networks.

    Networks of other libraries may have an attribute of this name, with other contents.
    """
    check_module(model)
    config = vars(model).get("config")
    return config if isinstance(config, NetworkConfig) else None


def set_config(model: nn.Module, config: NetworkConfig | None) -> None:
    """Give a network a configuration, or take its own away where `config` is None."""
    if config is not None:
        vars(model)["config"] = config
    elif config_of(model) is not None:
        del vars(model)["config"]
