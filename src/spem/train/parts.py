"""The parts of a network that are trained differently: backbone, gates, classifier; its layers."""

from collections.abc import Iterator

from torch import nn
from torch.nn import Parameter

from spem.gates.attention import Attention
from spem.surgery.placements import is_block

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def gate_parameters(model: nn.Module) -> set[Parameter]:
    """Return the parameters of the gates of a network."""
    gates = [module for module in model.modules() if isinstance(module, Attention)]
    return {parameter for gate in gates for parameter in gate.parameters()}


def held_parameters(module: nn.Module) -> list[Parameter]:
    """Return the parameters of a module and of those inside it, each once.

    As `parameters()`, which of an attached norm warns code that would optimise them twice.
    """
    held = (m.parameters(recurse=False) for m in module.modules())
    return [*dict.fromkeys(p for parameters in held for p in parameters)]


def classifier_parameters(model: nn.Module) -> set[Parameter]:
    """Return the parameters of the classifier: of the last linear layer outside of gates.

    Where there is none, the last convolution is the classifier. A network of timm says itself which
    heads it has; some have several.

    Raises:
        ValueError: there is neither.
    """
    if found := _ask_heads(model):
        return found
    gates = gate_parameters(model)
    for kind in (nn.Linear, nn.Conv2d):
        layers = [m for m in model.modules() if isinstance(m, kind) and m.weight not in gates]
        if layers:
            return {*layers[-1].parameters()}
    raise ValueError(
        f"the classifier of this {type(model).__name__} cannot be found, for it has neither a"
        " linear layer nor a convolution: leave out lr_factors, layer_decay and freeze"
    )


def _ask_heads(model: nn.Module) -> set[Parameter]:
    """Return the parameters of the heads that a network names by timm's `get_classifier`."""
    ask = getattr(model, "get_classifier", None)
    heads = ask() if callable(ask) else []
    heads = heads if isinstance(heads, list | tuple | nn.ModuleList) else [heads]
    return {p for head in heads if isinstance(head, nn.Module) for p in held_parameters(head)}


def layer_parameters(model: nn.Module) -> list[list[Parameter]]:
    """Return the parameters of a network by layer, from the input to the classifier.

    A layer is a block, or a convolution or linear layer outside of blocks; a norm belongs to the
    layer before it. Blocks are those of the families that `attach` knows, and what lists of modules
    hold, or lists in these. The order is that in which the network has its modules.

    Raises:
        ValueError: there is no classifier.
    """
    classifier = classifier_parameters(model)
    layers: list[list[Parameter]] = []
    seen = set[Parameter](classifier)
    for joins, module in _walk(model, 0):
        new = [p for p in held_parameters(module) if p not in seen]
        seen.update(new)
        if new and joins and layers:
            layers[-1].extend(new)
        elif new:
            layers.append(new)
    # Parameters that modules own beside their children, as the scales of a ConvNeXt.
    layers[:1] = [
        [*(layers[0] if layers else []), *(p for p in model.parameters() if p not in seen)]
    ]
    return [*layers, [p for p in model.parameters() if p in classifier]]


def _walk(module: nn.Module, level: int) -> Iterator[tuple[bool, nn.Module]]:
    """Yield whether a module belongs to the layer before it, and the module, in a network's order.

    Args:
        module: part of the network.
        level: of how many lists of modules it is an element.
    """
    inside = isinstance(module, _CONTAINERS)
    for child in module.children():
        depth = level + inside
        if isinstance(child, Attention | nn.BatchNorm2d):
            yield True, child
        elif not [*child.children()]:
            yield not isinstance(child, nn.Linear | nn.Conv2d), child
        elif is_block(child) or depth > 1 or (depth == 1 and not _is_stage(child)):
            yield False, child
        else:
            yield from _walk(child, depth)


def _is_stage(module: nn.Module) -> bool:
    """Return whether all parameters of a module are in lists of modules, as those of a stage."""
    if isinstance(module, _CONTAINERS):
        return True
    own = [*module.parameters(recurse=False)]
    trained = [child for child in module.children() if held_parameters(child)]
    return not own and all(isinstance(child, _CONTAINERS) for child in trained)
