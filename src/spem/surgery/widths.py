"""The channels of a module's output: told, measured by an example, or inferred from its layers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spem._checks import check_whole
from spem._messages import shorten, unknown
from spem.gates import Attention
from spem.surgery.placements import find_module, joining_child

_SHORTCUTS = {"downsample", "shortcut", "proj"}
# What layers of PyTorch and others call the channels of their output.
_WIDTHS = ("num_features", "out_channels", "num_channels")

Channels = int | Mapping[str, int]
Example = Tensor | tuple[Any, ...]


def find_widths(
    model: nn.Module,
    slots: Mapping[str, nn.Module],
    channels: Channels | None,
    example: Example | None,
) -> dict[str, int]:
    """Return the channels of each slot's output by its name, from the surest source there is.

    Args:
        model: the network.
        slots: the modules whose outputs will be gated.
        channels: told by the user: of all slots, or of some by their names.
        example: an input of the model, or a tuple of inputs; it is run where something is not told.

    Raises:
        ValueError: the channels of a slot are not known, or its output is no feature map.
    """
    told = _check_channels(channels, slots)
    inferred = {name: _infer_width(model, name) for name in slots if name not in told}
    if example is not None:
        untold = {name: slots[name] for name in inferred}
        return told | _measure_widths(model, untold, inferred, example)
    for name, width in inferred.items():
        if width is None:
            raise ValueError(
                f"{shorten(name)} does not tell its channels: give example=, an input of the model "
                "by which they are measured, or channels=; or name a norm or a convolution"
            )
    return told | {name: width for name, width in inferred.items() if width is not None}


def describe_mismatch(name: str, expected: int, output: Tensor) -> str:
    """Return a sentence on an output whose channels are not those that a gate was built for."""
    if output.shape[3] == expected:
        return (
            f"the output of {shorten(name)} is {tuple(output.shape)}, as of "
            f"(N, H, W, C): a gate needs (N, C, H, W); attach it elsewhere by at="
        )
    return (
        f"the output of {shorten(name)} has {output.shape[1]} channels, its gate was built for "
        f"{expected}, as the layers let infer: detach, and attach with example=, an input of the "
        f"model by which channels are measured, or with channels={output.shape[1]}"
    )


def describe_output(name: str, output: object) -> str:
    """Return a sentence on an output that is no feature map."""
    kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    return (
        f"a gate needs the output (N, C, H, W), that of {shorten(name)} is {kind}: attach it "
        "elsewhere by at="
    )


def _check_channels(channels: Channels | None, slots: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the channels that were told, by slot."""
    if channels is None:
        return {}
    if not isinstance(channels, Mapping):
        check_whole("channels", channels)
        return dict.fromkeys(slots, channels)
    for name, width in channels.items():
        if name not in slots:
            raise unknown("slot in channels", name, slots)
        check_whole(f"channels of {shorten(name)}", width)
    return dict(channels)


def _infer_width(model: nn.Module, name: str) -> int | None:
    """Return the channels that the layers of a module tell, or those before it in its parent."""
    slot = model.get_submodule(name)
    if isinstance(slot, nn.Linear | nn.Flatten):  # no feature map, whatever stands before
        return None
    parent, _, child = name.rpartition(".")
    siblings = find_module(model, parent)
    before: list[nn.Module] = []
    for sibling, module in [] if siblings is None else siblings.named_children():
        if sibling == child:
            break
        if sibling not in _SHORTCUTS:
            before.append(module)
    for module in (slot, *reversed(before)):
        if (width := _told_by_layers(module)) is not None:
            return width
    return None


def _told_by_layers(block: nn.Module) -> int | None:
    """Return the channels of a block, or those that the last of its layers tells."""
    joint = joining_child(block)
    own = told_by(block)
    if own is not None or joint is not None:
        return own if joint is None else _told_by_layers(joint)
    found = None
    for name, child in block.named_children():
        if name not in _SHORTCUTS and not isinstance(child, Attention):
            inner = _told_by_layers(child)
            found = found if inner is None else inner
    return found


def told_by(layer: nn.Module) -> int | None:
    """Return the channels of the output that a layer tells; None for layers that have none."""
    widths = [getattr(layer, key, None) for key in _WIDTHS]
    shape: Any = getattr(layer, "normalized_shape", None)
    if isinstance(shape, tuple | list) and len(shape) in (1, 3):  # (C,) or (C, H, W)
        widths.append(shape[0])
    weight = getattr(layer, "weight", None)
    if "Norm" in type(layer).__name__ and isinstance(weight, Tensor) and not is_lazy(weight):
        widths += weight.shape if weight.dim() == 1 else []
    return next((width for width in widths if isinstance(width, int) and width > 0), None)


def _measure_widths(
    model: nn.Module,
    slots: Mapping[str, nn.Module],
    inferred: Mapping[str, int | None],
    example: Example,
) -> dict[str, int]:
    """Run the model once, in evaluation mode and without gradients, and look at the outputs."""
    outputs: dict[nn.Module, list[Any]] = {slot: [] for slot in slots.values()}

    def note(slot: nn.Module, args: Any, output: Any) -> None:
        outputs[slot].append(output)

    with ExitStack() as stack:
        for slot in outputs:
            stack.enter_context(slot.register_forward_hook(note))
        stack.enter_context(_evaluating(model))
        _run(model, example)
    return {name: _width_of(name, outputs[slot], inferred[name]) for name, slot in slots.items()}


def _run(model: nn.Module, example: Example) -> None:
    if not isinstance(example, Tensor | tuple):
        raise ValueError(
            f"example is {shorten(example)}, must be an input of the model or a tuple of inputs"
        )
    try:
        with torch.no_grad():
            model(*example) if isinstance(example, tuple) else model(example)
    except Exception as error:  # whatever a network of others may raise
        raise ValueError(
            f"the model does not take the example {shorten(example)}: give an input of the model, "
            f"or a tuple of inputs; it raised {type(error).__name__}: {shorten(str(error))}"
        ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back into its own.

    The flags are set, because `eval` may do more in networks of others.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _width_of(name: str, outputs: list[Any], inferred: int | None) -> int:
    """Return the channels of what a slot gave in the example."""
    if not outputs:
        raise ValueError(f"{shorten(name)} did not run in the example: attach elsewhere by at=")
    for output in outputs:
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise ValueError(describe_output(name, output))
    widths = {output.shape[1] for output in outputs}
    if len(widths) > 1:
        raise ValueError(
            f"{shorten(name)} runs {len(outputs)} times in the example and gives {sorted(widths)} "
            "channels: a gate serves one number of them; attach it elsewhere by at="
        )
    width, last = widths.pop(), outputs[0].shape[3]
    if inferred is not None and width != inferred == last:
        raise ValueError(describe_mismatch(name, inferred, outputs[0]))
    return width
