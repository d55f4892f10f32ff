"""Find the modules of a model that can be given a gate, and those that have one."""

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from spem._checks import check_names
from spem._messages import shorten
from spem.gates import Attention

# Blocks by class name, and the child that ends their residual branch; the first that exists is it.
_ENDINGS = {
    "BasicBlock": ("bn2", "conv2.bn"),
    "Bottleneck": ("bn3", "conv3.bn"),
    "ResBottleneckBlock": ("f.c.1",),
    "ResNetBasicLayer": ("layer.1.normalization",),
    "ResNetBottleNeckLayer": ("layer.2.normalization",),
    "RegNetXLayer": ("layer.2.normalization",),
    "RegNetYLayer": ("layer.3.normalization",),
    "PreBasicBlock": ("conv2",),
    "PreBottleneck": ("conv3",),
    "DenseLayer": ("conv2",),
    "VGGLayer": ("bn",),
    "PreActBasic": ("conv2",),
    "PreActBottleneck": ("conv3",),
}
_STAGE = re.compile(r"(.*\.)?(layer[1-9]|stages\.\d+|trunk_output\.block\d+|s[1-9])")
_SHORTCUTS = ("downsample", "shortcut", "proj")

At = str | Sequence[str] | Callable[[str, nn.Module], bool]


def find_slots(model: nn.Module, at: At) -> dict[str, nn.Module]:
    """Return the modules at `at` (see `attach`) by name, a Sequential's last child in its place.

    Raises:
        ValueError: nothing matches.
    """
    modules = dict(model.named_modules())
    if isinstance(at, str) and at == "residual":
        names = [name for name in map(_find_ending, modules.items()) if name]
    elif isinstance(at, str) and at == "stage":
        names = [n for n in modules if _STAGE.fullmatch(n) and not _inside_stage(n)]
    elif isinstance(at, nn.Module):
        raise ValueError(f"at is {shorten(at)}, must be names of modules, not one of them")
    elif callable(at):
        names = [name for name, module in modules.items() if at(name, module)]
    else:
        patterns = check_names("at", at)
        for pattern in patterns:
            if not pattern or not any(fnmatchcase(name, pattern) for name in modules):
                raise ValueError(f"no module of the model is named {shorten(pattern)}")
        names = [name for name in modules if any(fnmatchcase(name, p) for p in patterns)]
    if not names:
        hint = "; name the norms or layers by a pattern, like at='blocks.*.bn'"
        raise ValueError(
            f"at={shorten(at)} matches no module of this {type(model).__name__}"
            f"{hint if isinstance(at, str) else ''}"
        )
    return {name: last_child(modules[name]) for name in names}


def find_gates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Attention]]:
    """Yield every gate that a module of a model applies.

    These are the gates in the attribute `gate`, where `attach` and `GatedBatchNorm2d` keep them,
    and in the attribute that a class of blocks names as its `gate_attribute`.

    Yields:
        The name of the module, the module, the name of its attribute, and the gate there.
    """
    for name, module in model.named_modules():
        for attribute in dict.fromkeys(("gate", getattr(module, "gate_attribute", "gate"))):
            gate = getattr(module, attribute, None)
            if isinstance(gate, Attention):
                yield name, module, attribute, gate


def _find_ending(item: tuple[str, nn.Module]) -> str | None:
    """Return the name of the module that ends the residual branch of a block, or None."""
    name, block = item
    for kind in type(block).__mro__:
        for ending in _ENDINGS.get(kind.__name__, ()):
            if find_module(block, ending) is not None:
                return f"{name}.{ending}"
    return None


def find_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of this name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _inside_stage(name: str) -> bool:
    parents = name.split(".")
    return any(_STAGE.fullmatch(".".join(parents[:i])) for i in range(1, len(parents)))


def last_child(module: nn.Module) -> nn.Module:
    """Return the module whose output is that of a Sequential, of any depth."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return module


def apply_mask(slots: dict[str, nn.Module], mask: Sequence[int] | None) -> dict[str, nn.Module]:
    """Return the slots whose bit of the mask is set; all without a mask."""
    if mask is None:
        return slots
    check_mask(mask)
    if len(mask) != len(slots):
        raise ValueError(f"mask has {len(mask)} values, must have {len(slots)}, one for each slot")
    return {name: slot for (name, slot), bit in zip(slots.items(), mask, strict=True) if bit}


def check_mask(mask: object) -> None:
    """Raise ValueError unless a mask is a list or tuple of 0 and 1."""
    if not isinstance(mask, list | tuple) or any(bit not in (0, 1) for bit in mask):
        raise ValueError(f"mask is {shorten(mask)}, must be a list of 0 and 1")


def output_channels(name: str, slot: nn.Module) -> int:
    """Return the channels of a module's output, as its last norm or convolution tells.

    Raises:
        ValueError: it has neither.
    """
    found = None
    for inner_name, module in slot.named_modules():
        if not any(part in _SHORTCUTS for part in inner_name.split(".")):
            width = getattr(module, "num_features", getattr(module, "out_channels", None))
            found = width if isinstance(width, int) else found
    if found is None:
        raise ValueError(
            f"{shorten(name)} does not tell its channels: name a norm or a convolution"
        )
    return found
