"""Networks by name, with or without gates."""

import re
from typing import Any

from torch import nn

from spem.choices import unknown
from spem.gates import create_gate
from spem.models.preresnet import PreBasicBlock, PreBottleneck, PreResNet
from spem.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = ["PreResNet", "ResNet", "create_model"]

_FAMILIES = {
    "resnet": (ResNet, {"basic": BasicBlock, "bottleneck": Bottleneck}),
    "preresnet": (PreResNet, {"basic": PreBasicBlock, "bottleneck": PreBottleneck}),
}
_CONVOLUTIONS = {"basic": 6, "bottleneck": 9}  # of one block in each of the three stages


def create_model(
    name: str,
    gate: str | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    block: str | None = None,
    **gate_options: Any,
) -> nn.Module:
    """Build a network by its name.

    Args:
        name: a family and a depth: "resnet20", "resnet164", "preresnet110".
        gate: a key of `GATES` for the end of every residual branch, or None.
        num_classes: width of the classifier.
        in_channels: channels of the images.
        block: "basic" (depth 6n+2) or "bottleneck" (9n+2). By default basic where 6n+2 fits and
            the depth is at most 110, else bottleneck where 9n+2 fits, else basic.
        gate_options: keyword arguments of the gate.

    Returns:
        A network from images (N, in_channels, H, W), H and W at least 8, to logits
        (N, num_classes). Its attribute `config` holds these arguments.

    Raises:
        ValueError: a name is unknown, or a value is not allowed.

    Example:
        >>> model = create_model("resnet164", gate="spem", num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        1759648
    """
    network, blocks, depth = _parse(name)
    block = _choose_block(depth) if block is None else block
    if block not in blocks:
        raise unknown("block", block, blocks)
    per_depth = _CONVOLUTIONS[block]
    if depth < per_depth + 2 or (depth - 2) % per_depth:
        raise ValueError(f"depth {depth} of {name!r} is not {per_depth}n+2, as {block} blocks need")
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument} is {value!r}, must be a whole number of at least 1")
    if gate is None and gate_options:
        raise ValueError(f"gate options {sorted(gate_options)} were given without a gate")
    model = network(
        blocks[block],
        (depth - 2) // per_depth,
        lambda width: None if gate is None else create_gate(gate, width, **gate_options),
        num_classes,
        in_channels,
    )
    model.config = {
        "model": name,
        "gate": gate,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "block": block,
        "gate_options": gate_options,
    }
    return model


def _parse(name: str) -> tuple[Any, dict[str, Any], int]:
    match = re.fullmatch(r"([a-z]+)(\d+)", name)
    if match is None or match[1] not in _FAMILIES:
        raise unknown("model", name, [f"{family}DEPTH" for family in _FAMILIES])
    return *_FAMILIES[match[1]], int(match[2])


def _choose_block(depth: int) -> str:
    fits = {block: (depth - 2) % count == 0 for block, count in _CONVOLUTIONS.items()}
    if not any(fits.values()):
        raise ValueError(f"depth {depth} is neither 6n+2 (basic) nor 9n+2 (bottleneck)")
    if fits["basic"] and (depth <= 110 or not fits["bottleneck"]):
        return "basic"
    return "bottleneck"
