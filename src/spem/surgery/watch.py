"""Warn where the training of a network leaves its gates out.

Code that was written for a network without gates freezes the gates with their norms, or builds
optimizer groups that lack them. Neither is an error for PyTorch.
"""

import warnings
from weakref import WeakKeyDictionary

import torch
from torch import nn

from spem._messages import shorten
from spem.gates import Attention
from spem.surgery.slots import find_gates

# After so many steps a parameter without a gradient has been left out, not skipped at random.
_PATIENCE = 20


def watch_training(model: nn.Module, args: object = None) -> None:
    """Warn once where a model in training leaves gates out (a forward pre-hook)."""
    if torch.compiler.is_compiling() or not model.training or not torch.is_grad_enabled():
        return
    watch = _watches.get(model)
    if watch is None:
        watch = _Watch(model)
        if not watch.gates:
            return
        _watches[model] = watch
    watch.look(model)


def forget(model: nn.Module) -> None:
    """Begin anew: the gates of a model are others."""
    _watches.pop(model, None)


class _Watch:
    """What was seen of a model: its parameters, by names, and how often each had been written."""

    def __init__(self, model: nn.Module):
        inside = {p for m in model.modules() if isinstance(m, Attention) for p in m.parameters()}
        own = {n: p for n, p in model.named_parameters() if _counts_writes(p)}
        self.gates = {name: p for name, p in own.items() if p in inside}
        self.others = [p for p in own.values() if p not in inside]
        self.writes = {p: p._version for p in own.values()}
        self.frozen: list[str] = []
        self.settled = False
        self.steps = 0

    def look(self, model: nn.Module) -> None:
        """Compare with what was seen before."""
        frozen = [name for name, parameter in self.gates.items() if not parameter.requires_grad]
        if frozen != self.frozen:
            self.frozen = frozen
            _warn_of_frozen(model)
        if not self.settled:
            self._warn_of_left_out()

    def _warn_of_left_out(self) -> None:
        """Warn where other parameters were written by an optimizer, but some of the gates not."""
        still = [n for n, p in self.gates.items() if p.requires_grad and not self._moved(p)]
        if not still:
            self.settled = True
        elif any(map(self._moved, self.others)):
            self.steps += 1
            # The optimizer that owns a parameter clears its gradient.
            left = [n for n in still if self.steps > _PATIENCE or self.gates[n].grad is not None]
            if left:
                self.settled = True
                _warn(
                    f"no optimizer moves {len(left)} of {len(self.gates)} parameters of the gates,"
                    f" the first is {shorten(left[0])}: build it from spem.parameter_groups(model),"
                    " or give it to spem.attach(…, optimizer=optimizer)"
                )

    def _moved(self, parameter: nn.Parameter) -> bool:
        return parameter._version != self.writes[parameter]


_watches: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()


def _counts_writes(parameter: object) -> bool:
    # `torch.func.functional_call` puts other tensors in the place of parameters.
    return isinstance(parameter, nn.Parameter) and not parameter.is_inference()


def _warn_of_frozen(model: nn.Module) -> None:
    gates = {name: module for name, module, _, gate in find_gates(model) if [*gate.parameters()]}
    frozen = [name for name, module in gates.items() if _froze_with_norm(model, name, module)]
    if frozen:
        _warn(
            f"{len(frozen)} of {len(gates)} gates are frozen together with the module they follow,"
            f" the first at {shorten(frozen[0])}: to train them, call gate.requires_grad_(True) for"
            " every spem.Attention, and build the optimizer from spem.parameter_groups(model)"
        )


def _froze_with_norm(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Return whether a module is frozen whole, but not the layers beside it."""
    own = {parameter for part in module.modules() for parameter in part._parameters.values()}
    if any(parameter is not None and parameter.requires_grad for parameter in own):
        return False
    while name:
        name = name.rpartition(".")[0]
        parent = model.get_submodule(name)
        beside = [p for _, p in nn.Module.named_parameters(parent) if p not in own]
        if beside:
            return any(parameter.requires_grad for parameter in beside)
    return False


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
