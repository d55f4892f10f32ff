"""The configuration of a network of `create_model`: its arguments."""

from typing import Any

from torch import nn


def own_config(model: nn.Module) -> dict[str, Any] | None:
    """Return the `config` that `create_model` gave a network; None for any other model.

    Networks of other libraries have attributes of this name, too, with other contents.
    """
    config = vars(model).get("config")
    keys = {"model", "block", "gate", "gate_options", "in_channels", "mask", "placement"}
    return config if isinstance(config, dict) and keys <= config.keys() else None
