"""Parts of a network that are not trained, for all epochs or the first ones."""

from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spem._messages import shorten
from spem.gates.attention import Attention
from spem.train.parts import classifier_parameters, gate_parameters, held_parameters
from spem.train.recipe import Recipe


class Freezing:
    """What a recipe's `freeze` names: parameters that get no gradient, norms that keep statistics.

    Gates are never frozen, also where they are children of a norm or a block that is.

    Args:
        model: the network; it is not changed yet.
        recipe: freeze and freeze_epochs.

    Raises:
        ValueError: `freeze` matches nothing, or leaves nothing to train.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self._pattern, self._epochs = recipe.freeze, recipe.freeze_epochs
        self._kept = {name for name, m in model.named_modules() if isinstance(m, Attention)}
        self._parameters: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []
        if self._pattern is None:
            return
        free = gate_parameters(model)
        if self._pattern == "backbone":
            free |= classifier_parameters(model)
        # `nn.Module`'s own would warn of the parameters of gated norms.
        named = {f"{n}.{k}": p for n, m in model.named_modules() for k, p in m._parameters.items()}
        trained = {n: p for n, p in named.items() if p is not None and p.requires_grad}
        matched = [p for n, p in trained.items() if p not in free and self._matches(n)]
        self._parameters = list(dict.fromkeys(matched))
        norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self._norms = [m for name, m in norms.items() if self._matches(name)]
        self._check(model, len({*trained.values()}))

    def _matches(self, name: str) -> bool:
        """Return whether a parameter or norm is to be frozen, by its name or that of a parent."""
        parts = name.lstrip(".").split(".")
        parents = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if self._kept.intersection(parents):
            return False
        pattern = str(self._pattern)
        return pattern == "backbone" or any(fnmatchcase(each, pattern) for each in parents)

    def _check(self, model: nn.Module, trained: int) -> None:
        if not self._parameters and not self._norms:
            children = ", ".join(name for name, m in model.named_children() if held_parameters(m))
            raise ValueError(
                f"freeze is {shorten(self._pattern)}, which names nothing that could be frozen in"
                f" this {type(model).__name__}: write backbone, or a pattern of the names of its"
                f" modules, whose first are {children}"
            )
        if len(self._parameters) == trained and self._epochs is None:
            raise ValueError(
                f"freeze is {shorten(self._pattern)}, which leaves nothing to train in this"
                f" {type(model).__name__}: write backbone, which leaves gates and classifier"
            )

    def apply(self, epoch: int) -> None:
        """Freeze, or train again, what this epoch asks; the network is in training mode.

        Args:
            epoch: counted from 0.
        """
        frozen = self._epochs is None or epoch < self._epochs
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        for norm in self._norms:
            norm.training = not frozen  # without its gate, which `train` would change, too

    def lift(self) -> None:
        """Let everything be trained again, in a network that is somebody else's, too."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
