"""Find the modules of a model that can be given a gate, and those that have one."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from spem._checks import check_names
from spem._messages import shorten
from spem.gates import Attention
from spem.surgery.placements import NAMED, find_named
from spem.surgery.widths import told_by

# So many patterns of modules are listed where nothing matches, in so many characters.
_FEW, _LONGEST = 6, 200

At = str | Sequence[str] | Callable[[str, nn.Module], bool]


def find_slots(model: nn.Module, at: At) -> dict[str, nn.Module]:
    """Return the modules at `at` (see `attach`) by name, a Sequential's last child in its place.

    Raises:
        ValueError: nothing matches, or the last child of a Sequential stands elsewhere, too.
    """
    modules = dict(model.named_modules())
    if isinstance(at, str) and at in NAMED:
        names = find_named(model, at)
    elif isinstance(at, nn.Module):
        raise ValueError(f"at is {shorten(at)}, must be names of modules, not one of them")
    elif callable(at):
        names = [name for name, module in modules.items() if at(name, module)]
    else:
        patterns = check_names("at", at)
        found = {pattern: _match(modules, pattern) for pattern in patterns}
        for pattern in (pattern for pattern, matched in found.items() if not matched):
            raise ValueError(
                f"no module of the model is named {shorten(pattern)}{_list_places(modules)}"
            )
        names = [name for name in modules if any(name in matched for matched in found.values())]
    if not names:
        raise ValueError(
            f"at={shorten(at)} matches no module of this {type(model).__name__}: name norms, layers"
            f" or blocks by a pattern{_list_places(modules)}"
        )
    return {name: _find_slot(model, name, modules[name]) for name in names}


def _match(modules: dict[str, nn.Module], pattern: str) -> set[str]:
    """Return the names that a pattern matches; one that is a name matches that alone."""
    if pattern in modules:
        return {pattern} - {""}
    return {name for name in modules if name and fnmatchcase(name, pattern)}


def _list_places(modules: dict[str, nn.Module]) -> str:
    """Return a clause with patterns of the modules that tell their channels, the commonest."""
    kinds = Counter(
        (re.sub(r"\d+", "*", name), type(module).__name__)
        for name, module in modules.items()
        if name and told_by(module) is not None
    )
    places = [f"{pattern} ({n} {kind})" for (pattern, kind), n in kinds.most_common(_FEW)]
    while len(", ".join(places)) > _LONGEST:
        places.pop()
    return f"; there are: {', '.join(places)}" if places else ""


def _find_slot(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Return the module whose output is that of the one named, which may be a Sequential."""
    slot = last_child(module)
    if slot is not module:
        places = [n for n, m in model.named_modules(remove_duplicate=False) if m is slot]
        wholes = [n for n, m in model.named_modules(remove_duplicate=False) if m is module]
        if len(places) > len(wholes):
            raise ValueError(
                f"{shorten(name)} ends in a module that stands in {len(places)} places, "
                f"{', '.join(places[:3])}: its gate would run in each; name the module before it"
            )
    return slot


def find_gates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Attention]]:
    """Yield every gate that a module of a model applies.

    These are the gates in the attribute `gate`, where `attach` and `GatedBatchNorm2d` keep them,
    in the attribute that a class of blocks names as its `gate_attribute`, and between the other
    modules of an `nn.Sequential`.

    Yields:
        The name of the module, the module, the name of its attribute, and the gate there.
    """
    for name, module in model.named_modules():
        own = ("gate", getattr(module, "gate_attribute", "gate"))
        listed = module._modules if isinstance(module, nn.Sequential) else ()
        for attribute in dict.fromkeys((*own, *listed)):
            gate = getattr(module, attribute, None)
            if isinstance(gate, Attention):
                yield name, module, attribute, gate


def last_child(module: nn.Module) -> nn.Module:
    """Return the module whose output is that of a Sequential, of any depth.

    Only of one whose forward pass is that of `nn.Sequential`.
    """
    while type(module).forward is nn.Sequential.forward and isinstance(module, nn.Sequential):
        if not len(module):
            break
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
    if not isinstance(mask, list | tuple) or any(
        getattr(bit, "ndim", 0) or bit not in (0, 1) for bit in mask
    ):
        raise ValueError(f"mask is {shorten(mask)}, must be a list of 0 and 1")
