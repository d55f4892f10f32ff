"""Start a network from weights of another number of classes or channels, or without its gates."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_module
from spem._messages import shorten
from spem.gates import Attention
from spem.surgery.backbone import check_state, load_backbone, strip_prefix, without_compiled
from spem.surgery.placements import find_module

_COLOURS = 3


class Started(NamedTuple):
    """What `start_from_state` loaded.

    Attributes:
        said: a sentence for each part of the network that starts otherwise than as stored.
        gates: whether the weights had those of the network's gates, or it has none.
    """

    said: list[str]
    gates: bool


def start_from_state(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> Started:
    """Load weights, but for a classifier of another number of classes, and gates that they lack.

    Wrappers' prefixes are left out, as `load_backbone` does. The first convolution may read another
    number of channels than three: a single one takes the sum of the stored kernels of the colours,
    more take these in turn, scaled so that their sum stays.

    Args:
        model: changed in place.
        state_dict: of a network like it.
        source: what the weights are of, for the sentences.

    Raises:
        ValueError: anything else does not fit; nothing is loaded.
    """
    check_module(model)
    check_state(state_dict)
    own = {without_compiled(key): value for key, value in model.state_dict().items()}
    given, _ = strip_prefix(state_dict, own)
    said = _adapt_input(given, own, source)
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    left, gates = needed - given.keys(), needed & _find_gate_keys(model, own)
    if gates & left and gates - left:
        raise ValueError(
            f"there are {len(gates - left)} of the {len(gates)} weights of the gates in {source}:"
            " its gates are others, or in other places"
        )
    ignored = _find_classifiers(model, given, own, left - gates)
    for layer in ignored:
        key = f"{layer}.weight"
        stored = f"that of {source} has {len(given[key])}" if key in given else f"{source}: none"
        said.append(
            f"the classifier {shorten(layer)} starts anew: it has {len(own[key])} classes, {stored}"
        )
    load_backbone(model, given, ignore=[f"{layer}.*" for layer in ignored])
    return Started(said, not gates & left)


def _find_gate_keys(model: nn.Module, own: Mapping[str, Tensor]) -> set[str]:
    gates = tuple(
        without_compiled(f"{name}.")
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    )
    return {key for key in own if key.startswith(gates)} if gates else set()


def _find_classifiers(
    model: nn.Module, given: Mapping[str, Tensor], own: Mapping[str, Tensor], left: set[str]
) -> list[str]:
    """Return the layers that are stored for another number of classes, or not at all.

    Several are classifiers where they agree in both numbers of classes.
    """
    changed = {
        key: (len(given[key]), len(own[key]))
        for key in own.keys() & given.keys()
        if differs_in_classes(given[key], own[key])
    }
    layers = {key.rpartition(".")[0] for key in changed or left}
    found = {name: find_module(model, name) for name in layers}
    others = [name for name, it in found.items() if not isinstance(it, nn.Linear | nn.Conv2d)]
    if len({*changed.values()}) > 1 or (not changed and len(layers) > 1):
        return []
    if changed and others and not left and not _others_differ(given, own, changed):
        ((stored, classes),) = {*changed.values()}
        raise ValueError(
            f"the classifier of this {type(model).__name__} cannot be found:"
            f" {', '.join(sorted(changed)[:3])} has {classes} classes, and {stored} as stored, but"
            " is neither a linear layer nor a convolution: build the network for"
            f" {stored} classes, load the weights, then replace its classifier"
        )
    return [] if others else sorted(layers)


def _others_differ(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], changed: Collection[str]
) -> bool:
    """Return whether what no other number of classes explains is of another network, too."""
    rest = given.keys() - {*changed}
    return any(key not in own or given[key].shape != own[key].shape for key in rest)


def differs_in_classes(stored: Tensor, own: Tensor) -> bool:
    """Return whether two parameters of a layer differ in the number of its outputs alone."""
    if stored.dim() != own.dim() or not own.dim():
        return False
    return stored.shape[0] != own.shape[0] and stored.shape[1:] == own.shape[1:]


def _adapt_input(given: dict[str, Tensor], own: Mapping[str, Tensor], source: str) -> list[str]:
    """Fit the stored kernels of the first convolution to the channels that a network reads."""
    other = [key for key in given if key in own and _differs_in_inputs(given[key], own[key])]
    if len(other) != 1:
        return []
    (key,), channels = other, own[other[0]].shape[1]
    if channels == 1:
        given[key] = given[key].sum(1, keepdim=True)
    else:
        given[key] = given[key][:, torch.arange(channels) % _COLOURS] * (_COLOURS / channels)
    return [
        f"the convolution {shorten(key.rpartition('.')[0])} for {channels} channels starts with the"
        f" kernels for {_COLOURS} of {source}"
    ]


def _differs_in_inputs(stored: Tensor, own: Tensor) -> bool:
    """Return whether kernels of three colours differ from others in their inputs alone."""
    return (
        stored.dim() == own.dim() == 4
        and stored.shape[1] == _COLOURS != own.shape[1]
        and (stored.shape[0], *stored.shape[2:]) == (own.shape[0], *own.shape[2:])
    )
