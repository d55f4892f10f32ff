"""Convert published checkpoints: give the keys of the authors' repositories this library's names.

A renaming lists, for every key of ours, where its tensor comes from. The renaming of a network is
put together from those of the backbone and of the gates, so one comparison finds all unexpected and
all missing keys.
"""

import re
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from spem._checks import check_choice
from spem._messages import shorten
from spem.surgery.backbone import check_state, key_differences, without_compiled
from spem.surgery.renamings import GAIN, NORM, RENAMINGS, Renaming, Source, put_below, rename_layer

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
    check_choice("official method", method, RENAMINGS)
    check_state(state_dict)
    given = {without_compiled(k).removeprefix("module."): v for k, v in state_dict.items()}
    renamings = RENAMINGS[method]
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


def _rename_network(method: str, gate: Renaming, given: Mapping[str, Tensor]) -> Renaming:
    """Return the renaming of a CIFAR ResNet with as many blocks a stage as the given keys have."""
    last = "bn3" if "layer1.0.conv3.weight" in given else "bn2"
    indices = {match[1] for key in given if (match := re.match(r"layer\d\.(\d+)\.", key))}
    layers = _list_layers(int(last[-1]), len(indices))
    renaming: Renaming = {}
    for name, tensors in layers.items():
        renaming |= rename_layer(name, name, tensors)
    for norm in (name for name in layers if re.search(r"bn\d$", name)):
        stage = norm.partition(".")[0]
        if method == "iebn" or (method == "asr" and norm.endswith(last)):
            renaming |= put_below(f"{norm}.", f"{norm}.", gate)
        elif method == "dianet" and norm.endswith(last):
            # The later blocks of a stage have no part of its unit but the gain.
            own = gate if ".0." in norm else GAIN
            renaming |= put_below(f"{norm}.gate.", f"{stage}.lstm.", own)
        # In LSAS's networks the first two stages are plain.
        elif norm.endswith(last) and (method != "lsas" or stage == "layer3"):
            renaming |= put_below(f"{norm}.gate.", norm.removesuffix(last), gate)
    return renaming


def _list_layers(convolutions: int, blocks: int) -> dict[str, str]:
    """Return the layers of a CIFAR ResNet without gates, and the names of their tensors.

    Args:
        convolutions: of each block, 2 or 3.
        blocks: of each of the three stages.
    """
    layers = {"conv1": "weight", "bn1": NORM, "fc": "weight bias"}
    for stage, index in product((1, 2, 3), range(blocks)):
        block = f"layer{stage}.{index}."
        for i in range(1, convolutions + 1):
            layers |= {f"{block}conv{i}": "weight", f"{block}bn{i}": NORM}
        # Basic blocks keep the width of the stem in the first stage.
        if index == 0 and (convolutions == 3 or stage > 1):
            layers |= {f"{block}downsample.0": "weight", f"{block}downsample.1": NORM}
    return layers


def _keys(renaming: Renaming) -> set[str]:
    return {source.key for source in renaming.values() if source.key is not None}


def _take(source: Source, given: Mapping[str, Tensor]) -> Tensor:
    if source.key is None:
        return torch.ones(())
    if source.key not in given:
        return torch.zeros((), dtype=torch.int64)
    tensor = given[source.key]
    return tensor if source.form is None else source.form(tensor)
