"""Networks by name, with or without gates.

`create_model` builds the CIFAR networks of the papers: ResNet, pre-activation ResNet, VGG, DenseNet
and Residual Attention Network, with a gate of any kind in the places of a `Placement`, and loads
the bundled weights of those that are trained. Networks of timm, torchvision and Hugging Face it
builds by the names that these give them.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from spem._checks import check_choice, check_whole
from spem._messages import shorten, unknown
from spem.models import residual_attention, vgg
from spem.models.attached import build_attached, refuse_others, start_at_identity
from spem.models.densenet import DenseNet
from spem.models.dropout import check_drops
from spem.models.libraries import (
    describe_library,
    is_library_name,
    library_classes,
    load_library_weights,
)
from spem.models.names import USUAL, imagenet_advice
from spem.models.placement import Placement
from spem.models.preresnet import PreBasicBlock, PreBottleneck, PreResNet
from spem.models.pretrained import bundled_config, bundled_name, load_pretrained
from spem.models.registry import MODELS, register_model
from spem.models.residual_attention import ResidualAttentionNet
from spem.models.resnet import BasicBlock, Bottleneck, ResNet
from spem.models.vgg import VGG
from spem.surgery.config import NetworkConfig, set_config
from spem.surgery.slots import find_gates
from spem.surgery.watch import watch_training

__all__ = [
    "VGG",
    "DenseNet",
    "PreResNet",
    "ResNet",
    "ResidualAttentionNet",
    "create_model",
    "register_model",
]

_log = logging.getLogger("spem")
_RESIDUAL = {
    "resnet": (ResNet, {"basic": BasicBlock, "bottleneck": Bottleneck}),
    "preresnet": (PreResNet, {"basic": PreBasicBlock, "bottleneck": PreBottleneck}),
}
# The deepest that was published has 1,202 layers, of DenseNets 250.
_DEEPEST = {"resnet": 2000, "preresnet": 2000, "densenet": 500}
_CONVOLUTIONS = {"basic": 6, "bottleneck": 9}  # of one block in each of the three stages


def create_model(
    name: str,
    gate: str | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    block: str | None = None,
    placement: str | None = None,
    at: str | Sequence[str] | None = None,
    mask: Sequence[int] | None = None,
    pretrained: str | bool | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    **gate_options: Any,
) -> nn.Module:
    """Build a network by its name.

    Args:
        name: "resnet20", "resnet164" …, "preresnet110" …, "vgg11", "vgg13", "vgg16", "vgg19",
            "densenet100" (BC, growth 12), "attention56", "attention92"; one that `register_model`
            has entered; or one of another library, which must be installed: "timm:resnet50",
            "torchvision:resnet18", "hf:microsoft/resnet-18" (or "hf:" and a folder).
        gate: a key of `GATES`, or None.
        num_classes: width of the classifier; None for that of the pretrained network, else 10.
        in_channels: channels of the images.
        block: of (pre-activation) ResNets: "basic" (depth 6n+2) or "bottleneck" (9n+2). By default
            basic where 6n+2 fits and the depth is at most 110, else bottleneck where 9n+2 fits,
            else basic.
        placement: where the gates sit in a network of this library: "residual" (at the end of every
            residual branch; VGG: behind every norm; DenseNet: on the new channels), "conv" (before
            every convolution), "norm" (on every norm but those of shortcuts) or "last-stage"; None
            for what its authors do. Of a registered network: the same as `at`.
        at: where `attach` puts the gates into a registered network or one of another library:
            "residual", "stage", "depthwise", a pattern of names of modules, or a list of these;
            None for "residual".
        mask: 0 or 1 for every place, in order, to gate only some.
        pretrained: "cifar10" or "cifar100", for the bundled weights of this very network (extra
            `train`); True for the weights that another library has for its own, where a classifier
            of other classes starts anew, which is logged; None or False for fresh ones.
        dropout: probability with which a network of another library drops the inputs of its
            classifier in training (some drop other activations, too); None for what the library
            does.
        drop_path: probability with which the last residual branch of such a network is dropped
            (stochastic depth; those before it less often); None for what the library does.
        gate_options: keyword arguments of the gate. In networks of another library with pretrained
            weights, gates start as the identity unless `init` is given, else as their authors do.

    Returns:
        A network from images (N, in_channels, H, W), H and W at least 8 (VGG: 32), to logits
        (N, num_classes). Its attribute `config`, a `spem.surgery.NetworkConfig`, holds these
        arguments.

    Raises:
        ValueError: a name is unknown, a value is not allowed, or there are no such weights.
        ImportError: `pretrained` is given without the extra `train`, or a library is missing.
        OSError: another library's weights or configuration cannot be fetched.

    Example:
        >>> model = create_model("resnet164", gate="spem", num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        1759648
    """
    trained = pretrained is not None and pretrained is not False
    drops: dict[str, Any] = {"dropout": dropout, "drop_path": drop_path}
    check_drops(name, is_library_name(name), drops)
    if is_library_name(name) or (isinstance(name, str) and name in MODELS):
        refuse_others(name, gate, block, placement, at, pretrained)
        if gate is None:
            Placement(None, gate_options, placement, mask)  # refuses options without a gate
        options = start_at_identity(gate, gate_options) if trained else gate_options
        build = partial(build_attached, name, gate, options, at or placement, mask, drops=drops)
    else:
        if at is not None:
            raise ValueError(f"at is {shorten(at)}, but {shorten(name)} has placement instead")
        network, block = _find_network(name, block)
        build = partial(_build_own, network, Placement(gate, gate_options, placement, mask))
    classes = _count_classes(name, gate, pretrained) if num_classes is None else num_classes
    check_whole("num_classes", classes)
    check_whole("in_channels", in_channels, most=1024)
    model = build(num_classes=classes, in_channels=in_channels)
    places = _listed(mask, lambda bit: int(bool(bit))), gate_options, _listed(at, str)
    config = NetworkConfig(name, gate, classes, in_channels, block, placement, *places, **drops)
    if is_library_name(name):
        config = replace(config, library=describe_library(name, model))
    set_config(model, config)
    if trained:
        _load(model, config, pretrained)
    return model


def _listed(values: Sequence[Any] | None, convert: Callable[[Any], Any]) -> Any:
    """Return values as a list, for JSON; None and texts as they are."""
    return values if values is None or isinstance(values, str) else [*map(convert, values)]


def _count_classes(name: str, gate: str | None, pretrained: Any) -> int:
    """Return the number of classes of a network with pretrained weights, else 10."""
    if pretrained is None or pretrained is False:
        return 10
    if is_library_name(name):
        return library_classes(name)
    return bundled_config(bundled_name(name, gate, pretrained))["num_classes"]


def _load(model: nn.Module, config: NetworkConfig, pretrained: Any) -> None:
    """Load the pretrained weights of a network; what starts anew is logged."""
    if config.library is None:
        load_pretrained(model, config, pretrained)
        return
    for sentence in load_library_weights(model, config.model).said:
        _log.warning("%s", sentence)


def _build_own(network: Callable[..., nn.Module], gates: Placement, **sizes: int) -> nn.Module:
    """Return a network of the library's for numbers of classes and channels."""
    model = network(gates=gates, **sizes)
    gates.finish()
    if any(find_gates(model)):
        model.register_forward_pre_hook(watch_training)
    return model


def _find_network(name: str, block: str | None) -> tuple[Callable[..., nn.Module], str | None]:
    """Return what builds the network of this name, and its block."""
    match = re.fullmatch(r"([a-z]+)([1-9]\d{0,8})", name) if isinstance(name, str) else None
    family, depth = (match[1], int(match[2])) if match else ("", 0)
    if depth > _DEEPEST.get(family, depth):
        raise ValueError(f"depth {depth} of {shorten(name)} must be at most {_DEEPEST[family]:,}")
    if family in _RESIDUAL:
        network, blocks = _RESIDUAL[family]
        block = _choose_block(name, depth) if block is None else block
        check_choice("block", block, blocks)
        count = _CONVOLUTIONS[block]
        if depth < count + 2 or (depth - 2) % count:
            raise ValueError(
                f"depth {depth} of {shorten(name)} is not {count}n+2, as {block} blocks need"
            )
        return partial(network, blocks[block], (depth - 2) // count), block
    if block is not None:
        raise ValueError(f"block is {shorten(block)}, but {shorten(name)} has no choice of blocks")
    if family == "vgg" and depth in vgg.PLANS:
        return partial(VGG, depth), None
    if family == "attention" and depth in residual_attention.PLANS:
        return partial(ResidualAttentionNet, residual_attention.PLANS[depth]), None
    if family == "densenet":
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f"depth {depth} of {shorten(name)} is not 6n+4, as DenseNet-BC needs"
                + imagenet_advice(name)
            )
        return partial(DenseNet, (depth - 4) // 6), None
    raise unknown("model", name, [*USUAL, *MODELS])


def _choose_block(name: str, depth: int) -> str:
    fits = [block for block, count in _CONVOLUTIONS.items() if (depth - 2) % count == 0]
    if not fits:
        raise ValueError(
            f"depth {depth} is neither 6n+2 (basic: 20, 56, 110) nor 9n+2 (bottleneck: 29, 164)"
            + imagenet_advice(name)
        )
    return fits[0] if depth <= 110 else fits[-1]
