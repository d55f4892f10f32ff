"""Convert published checkpoints: give the keys of the authors' repositories this library's names.

A renaming lists, for every key of ours, where its tensor comes from. The renaming of a network is
put together from those of the backbone and of the gates, so one comparison finds all unexpected and
all missing keys.
"""

import re
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from spem._checks import check_choice
from spem._messages import shorten
from spem.surgery.backbone import check_state, key_differences, without_compiled


class _Source(NamedTuple):
    """A key of the authors, None for the constant 1, and what brings its tensor into our shape."""

    key: str | None = None
    form: Callable[[Tensor], Tensor] | None = None


_Renaming = dict[str, _Source]

_NORM = "weight bias running_mean running_var num_batches_tracked"
_GAIN: _Renaming = {"gain": _Source()}


def _layer(ours: str, official: str, tensors: str = "weight bias") -> _Renaming:
    return {f"{ours}.{name}": _Source(f"{official}.{name}") for name in tensors.split()}


def _vectors(ours: str, official: str) -> _Renaming:
    """Parameters of (C,) here and (1, C, 1, 1) there, named in the same order."""
    pairs = zip(ours.split(), official.split(), strict=True)
    return {name: _Source(key, Tensor.flatten) for name, key in pairs}


def _below(ours: str, official: str, renaming: _Renaming) -> _Renaming:
    """Put a renaming below a prefix on either side."""
    return {
        ours + name: source if source.key is None else source._replace(key=official + source.key)
        for name, source in renaming.items()
    }


def _perceptron(first: str, second: str, tensors: str = "weight bias") -> _Renaming:
    return _GAIN | _layer("fc1", first, tensors) | _layer("fc2", second, tensors)


def _lsas(order: int) -> _Renaming:
    renaming = _perceptron("fc1", "fc2")
    for j in range(order):
        suffix = "" if j == 0 else j + 1
        renaming |= _vectors(f"sub_scale.{j} sub_shift.{j}", f"w{suffix} b{suffix}")
    return renaming


_SE = _perceptron("fc1", "fc2")
_CBAM = _perceptron("ChannelGate.mlp.1", "ChannelGate.mlp.3")
_SPA = _GAIN | _layer("pyramid.fc1", "fc.0", "weight") | _layer("pyramid.last", "fc.2", "weight")

# Of each method one renaming for every form in its repositories. ASR and IEBN are norms there, so
# theirs are those of a `GatedBatchNorm2d`.
_RENAMINGS: dict[str, list[_Renaming]] = {
    "spem": [
        _GAIN
        | _vectors("excitation_scale excitation_shift", "w1 b1")
        | _vectors("reweight_scale reweight_shift pool_weight", "w2 b2 p")
    ],
    "se": [_SE, _perceptron("fc.0", "fc.2"), _perceptron("fc.0", "fc.2", "weight")],
    "eca": [_GAIN | _layer("conv", "conv", "weight")],
    "srm": [_GAIN | {"style_weight": _Source("cfc")} | _layer("bn", "bn", _NORM)],
    "gct": [_GAIN | _vectors("alpha gamma beta", "alpha gamma beta")],
    "cbam": [
        _CBAM
        | _layer("spatial.conv", "SpatialGate.spatial.conv", "weight")
        | _layer("spatial.bn", "SpatialGate.spatial.bn", _NORM),
        _CBAM,
    ],
    "sge": [_GAIN | _vectors("weight bias", "weight bias")],
    "fcanet": [_perceptron("fc.0", "fc.2", "weight") | {"dct": _Source("dct_layer.weight")}],
    "spa": [
        _SPA,
        _SPA | _layer("matcher.0", "conv1.0", "weight") | _layer("matcher.1", "conv1.1", _NORM),
        _GAIN
        | _vectors("pyramid.level_weight", "weight")
        | _layer("pyramid.conv", "transform.0", "weight")
        | _layer("pyramid.bn", "transform.1", _NORM)
        | _layer("pyramid.last", "transform.3", "weight"),
    ],
    "dianet": [
        _GAIN
        | _layer("w_ih.0", "w_ih.0.seq.0")
        | _layer("w_ih.2", "w_ih.0.seq.2")
        | _layer("w_hh.0", "w_hh.0.seq.0")
        | _layer("w_hh.2", "w_hh.0.seq.2")
    ],
    "sem": [
        _SE
        | _layer("switch_fc", "switch_fc")
        | _layer("conv", "conv", "weight")
        | _vectors("scale shift", "w1 b1")
    ],
    "lsas": [_lsas(order) for order in range(6)],
    "danet": [
        _GAIN | {"channel.gamma": _Source("gamma", Tensor.squeeze)},
        _GAIN
        | _layer("position.query", "query_conv")
        | _layer("position.key", "key_conv")
        | _layer("position.value", "value_conv")
        | {"position.gamma": _Source("gamma", Tensor.squeeze)},
    ],
    "asr": [
        {name: _Source(f"bn.{name}") for name in _NORM.split()}
        | {"gate.vector": _Source("vector", lambda vector: vector.flatten()[None])}
        | _below("gate.", "", _GAIN)
        | _below("gate.attention.", "attention_module.", _SE)
    ],
    "iebn": [
        _vectors("weight bias", "weight bias")
        | {name: _Source(name) for name in _NORM.split()[2:]}
        | _vectors("gate.scale gate.shift", "weight_readjust bias_readjust")
        | _below("gate.", "", _GAIN)
    ],
}
_NETWORKS = ("asr", "dianet", "iebn", "lsas", "se", "sem", "spem")


def convert_official(method: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of the authors' repository into one for this library's module.

    A network becomes one for `create_model("resnetDEPTH", gate=method)`, a gate one for
    `create_gate(method, channels)`; ASR and IEBN, which are norms there, become one for a
    `GatedBatchNorm2d` with the gate. Both take the options that the checkpoint was trained with.
    Nothing is copied, the tensors share their memory.

    Args:
        method: a key of `GATES` with published parameter names.
        state_dict: of one gate, or of a CIFAR ResNet with ASR, DIANet, IEBN, LSAS, SE, SEM or SPEM;
            keys may begin with "module." or "_orig_mod.".

    Returns:
        Our keys and the tensors in our shapes, complete, so that they load strictly. ASR's unused
        `fused_bn` is left out.

    Raises:
        ValueError: the method is unknown, a key is not one of it, or a key is missing.

    Source: the names in the authors' repositories.

    Example:
        >>> official = {"conv.weight": torch.ones(1, 1, 3)}
        >>> convert_official("eca", official).keys()
        dict_keys(['gain', 'conv.weight'])
    """
    check_choice("official method", method, _RENAMINGS)
    check_state(state_dict)
    given = {without_compiled(k).removeprefix("module."): v for k, v in state_dict.items()}
    renamings = _RENAMINGS[method]
    if method == "asr":
        given = {key: v for key, v in given.items() if "fused_bn" not in key.split(".")}
    if any(key.startswith("layer") for key in given):
        if method not in _NETWORKS:
            raise ValueError(
                f"no official network of {shorten(method)} is known, only of {', '.join(_NETWORKS)}"
            )
        renamings = [_rename_network(method, gate, given) for gate in renamings]
    # The one with the fewest keys that it does not know, then with the fewest that it misses.
    renaming = min(
        renamings,
        key=lambda r: (len(given.keys() - _keys(r)), len(_keys(r) - given.keys())),
    )
    # Checkpoints from before PyTorch 0.4.1 have no counters.
    absent = _keys(renaming) - given.keys()
    counters = {key for key in absent if key.endswith("num_batches_tracked")}
    if differences := key_differences(given, dict.fromkeys(_keys(renaming) - counters)):
        raise ValueError(f"not a state dict of {shorten(method)} by its authors: {differences}")
    return {name: _take(source, given) for name, source in renaming.items()}


def _rename_network(method: str, gate: _Renaming, given: Mapping[str, Tensor]) -> _Renaming:
    """Return the renaming of a CIFAR ResNet with as many blocks a stage as the given keys have."""
    last = "bn3" if "layer1.0.conv3.weight" in given else "bn2"
    indices = {match[1] for key in given if (match := re.match(r"layer\d\.(\d+)\.", key))}
    layers = _list_layers(int(last[-1]), len(indices))
    renaming: _Renaming = {}
    for name, tensors in layers.items():
        renaming |= _layer(name, name, tensors)
    for norm in (name for name in layers if re.search(r"bn\d$", name)):
        stage = norm.partition(".")[0]
        if method == "iebn" or (method == "asr" and norm.endswith(last)):
            renaming |= _below(f"{norm}.", f"{norm}.", gate)
        elif method == "dianet" and norm.endswith(last):
            # The later blocks of a stage have no part of its unit but the gain.
            own = gate if ".0." in norm else _GAIN
            renaming |= _below(f"{norm}.gate.", f"{stage}.lstm.", own)
        # In LSAS's networks the first two stages are plain.
        elif norm.endswith(last) and (method != "lsas" or stage == "layer3"):
            renaming |= _below(f"{norm}.gate.", norm.removesuffix(last), gate)
    return renaming


def _list_layers(convolutions: int, blocks: int) -> dict[str, str]:
    """Return the layers of a CIFAR ResNet without gates, and the names of their tensors.

    Args:
        convolutions: of each block, 2 or 3.
        blocks: of each of the three stages.
    """
    layers = {"conv1": "weight", "bn1": _NORM, "fc": "weight bias"}
    for stage, index in product((1, 2, 3), range(blocks)):
        block = f"layer{stage}.{index}."
        for i in range(1, convolutions + 1):
            layers |= {f"{block}conv{i}": "weight", f"{block}bn{i}": _NORM}
        # Basic blocks keep the width of the stem in the first stage.
        if index == 0 and (convolutions == 3 or stage > 1):
            layers |= {f"{block}downsample.0": "weight", f"{block}downsample.1": _NORM}
    return layers


def _keys(renaming: _Renaming) -> set[str]:
    return {source.key for source in renaming.values() if source.key is not None}


def _take(source: _Source, given: Mapping[str, Tensor]) -> Tensor:
    if source.key is None:
        return torch.ones(())
    if source.key not in given:
        return torch.zeros((), dtype=torch.int64)
    tensor = given[source.key]
    return tensor if source.form is None else source.form(tensor)
