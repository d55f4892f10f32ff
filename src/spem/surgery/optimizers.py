"""Keep an optimizer in step with a network whose gates come and go."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Muon, Optimizer

from spem._checks import check_optimizer
from spem.gates import Attention
from spem.gates.groups import parameter_groups


def check_takes(model: nn.Module, optimizer: Optimizer, gates: Sequence[Attention]) -> None:
    """Raise ValueError unless an optimizer trains a model and can take the parameters of gates."""
    check_optimizer(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError(
            "the optimizer holds no parameter of this model: give the one that trains it, or none"
        )
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS | Adagrad):
        raise ValueError(f"{kind} takes no parameters later: attach gates first, then build it")
    if isinstance(optimizer, Muon) and any(p.dim() != 2 for g in gates for p in g.parameters()):
        raise ValueError(
            f"{kind} takes matrices alone: give the gates an optimizer of their own, from"
            " spem.parameter_groups(gate) of each gate"
        )
    for group in parameter_groups(nn.ModuleList(gates)):
        if _has_schedule(optimizer) and _find_group(optimizer, group) is None:
            raise ValueError(
                "a scheduler holds this optimizer, which has no group without weight decay for"
                " these gates: attach gates first, then build both from spem.parameter_groups"
            )


def extend_optimizer(model: nn.Module, optimizer: Optimizer, gates: Sequence[Attention]) -> None:
    """Add the parameters of a model's new gates to its optimizer.

    They form groups like the first one, some without weight decay. Where a scheduler holds the
    optimizer, which takes no new groups, they join the first group of such settings.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for new in parameter_groups(nn.ModuleList(gates)):
        group = _find_group(optimizer, new) if _has_schedule(optimizer) else None
        if group is not None:
            group["params"] += new["params"]
            if "param_names" in group:
                group["param_names"] += [names[p] for p in new["params"]]
            continue
        settings = {k: _copy(v) for k, v in optimizer.param_groups[0].items() if k != "params"}
        if settings.pop("param_names", None) is not None:
            new["params"] = [(names[p], p) for p in new["params"]]
        optimizer.add_param_group(settings | new)


def shrink_optimizer(optimizer: Optimizer, gates: Sequence[Attention]) -> None:
    """Take the parameters of gates out of an optimizer, and groups that have no others.

    Where a scheduler holds the optimizer, such groups stay, empty: it counts them.
    """
    gone = {parameter for gate in gates for parameter in gate.parameters()}
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for group in list(optimizer.param_groups):
        kept = [i for i, parameter in enumerate(group["params"]) if parameter not in gone]
        for key in {"params", "param_names"} & group.keys():
            group[key] = [group[key][i] for i in kept]
        if not kept and not _has_schedule(optimizer):
            optimizer.param_groups.remove(group)


def _has_schedule(optimizer: Optimizer) -> bool:
    """Return whether a scheduler that has a rate for each group was built for the optimizer."""
    return "initial_lr" in optimizer.param_groups[0]


def _find_group(optimizer: Optimizer, new: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first group of an optimizer that has the settings of a new one."""
    first = optimizer.param_groups[0]
    decay = new.get("weight_decay", first.get("weight_decay", 0))
    same = (group for group in optimizer.param_groups if group.get("weight_decay", 0) == decay)
    return next(same, None)


def _copy(value: Any) -> Any:
    # A rate that is a tensor is set in place: two groups must not share it.
    return value.clone() if isinstance(value, Tensor) else value
