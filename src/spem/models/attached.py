"""Networks of the user's and of other libraries, into which `attach` puts the gates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spem._checks import check_switch
from spem._messages import shorten
from spem.gates import GATES, gate_options
from spem.models.libraries import build_network, is_library_name, network_of
from spem.models.registry import MODELS
from spem.surgery.attachment import attach
from spem.surgery.config import NetworkConfig, set_config

_SIDE = 224  # of ImageNet's images, in pixels


def refuse_others(
    name: str, gate: str | None, block: Any, placement: Any, at: Any, pretrained: Any
) -> None:
    """Raise ValueError where arguments of `create_model` are not for such a network."""
    if block is not None:
        raise ValueError(f"block is {shorten(block)}, but {shorten(name)} has no choice of blocks")
    if placement is not None and (at is not None or is_library_name(name)):
        raise ValueError(
            f"placement is {shorten(placement)}, but the gates of {shorten(name)} are placed by at"
        )
    if gate is None and at is not None:
        raise ValueError("at given without a gate: name one, or leave it out")
    if is_library_name(name) and pretrained is not None:
        check_switch("pretrained", pretrained)


def start_at_identity(gate: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return a gate's options with a start that leaves the outputs of a network as they are."""
    return {"init": "identity", **options} if _has_start(gate) else options


def build_attached(
    name: str,
    gate: str | None,
    options: dict[str, Any],
    at: str | Sequence[str] | None,
    mask: Sequence[int] | None,
    library: dict[str, Any] | None = None,
    drops: dict[str, float | None] | None = None,
    **sizes: int,
) -> nn.Module:
    """Return a network with gates, which start as their authors do unless the options say more.

    Args:
        name: of a registered network, or of one of another library.
        gate: a key of `GATES`; None for no gates.
        options: of the gate.
        at: see `attach`; None for "residual".
        mask: see `attach`.
        library: see `build_network`.
        drops: see `build_network`.
        sizes: `num_classes` and `in_channels`.
    """
    own = name in MODELS
    model = (
        MODELS[name](**sizes) if own else build_network(name, **sizes, drops=drops, library=library)
    )
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the model {shorten(name)} is {shorten(model)}, must be a torch.nn.Module"
        )
    if gate is not None:
        settings: dict[str, Any] = {"init": "paper" if _has_start(gate) else None, **options}
        # Channels that the layers of another library do not tell are measured.
        example = None if own else torch.zeros(1, sizes["in_channels"], _SIDE, _SIDE)
        places = {"at": at or "residual", "mask": mask, "example": example}
        attach(network_of(model), gate, **places, **settings)
    return model


def rebuild(config: NetworkConfig, attached: dict[str, Any] | None) -> nn.Module:
    """Build a network of another library again, with fresh weights; nothing is fetched.

    Args:
        config: of the network.
        attached: what `spem.attachment` returned for it; None: the configuration says where its
            gates are.
    """
    plain = config if attached is None else config.without_gates()
    sizes = {"num_classes": plain.num_classes, "in_channels": plain.in_channels}
    places = (plain.gate, plain.gate_options, plain.at, plain.mask)
    drops = {"dropout": plain.dropout, "drop_path": plain.drop_path}
    model = build_attached(plain.model, *places, plain.library, drops, **sizes)
    if attached is not None:
        attach(model, **attached)
    set_config(model, config)
    return model


def _has_start(gate: str | None) -> bool:
    return gate is not None and gate in GATES and "init" in gate_options(gate)
