"""The parameters of a network in the groups that an optimizer takes."""

from typing import Any

from torch import nn

from spem._checks import check_finite, check_module
from spem.gates.attention import Attention


def parameter_groups(
    model: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    gate_lr: float | None = None,
    norm_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return the parameters of a network in groups for an optimizer, each exactly once.

    Weight decay acts on every parameter, except those that the authors of a gate train without
    (`Attention.no_weight_decay`: SRM, and the shift of GCT). What is None is left to the optimizer.

    Args:
        model: a network with or without gates; its frozen parameters are in the groups, too.
        lr: the learning rate.
        weight_decay: the weight decay.
        gate_lr: the learning rate of the gates; None for that of the other parameters.
        norm_weight_decay: the weight decay of norms and biases (parameters of one dimension)
            outside of gates, often 0; None for that of the other parameters.

    Returns:
        The groups, for `torch.optim.SGD(groups, lr=0.1)` and the like.

    Raises:
        ValueError: a number is negative or not finite.

    Example:
        >>> from spem import create_model
        >>> groups = parameter_groups(create_model("resnet8", "srm"), lr=0.1, gate_lr=0.01)
        >>> [(len(group.pop("params")), group) for group in groups]
        [(29, {'lr': 0.1}), (9, {'lr': 0.01, 'weight_decay': 0.0})]
    """
    check_module(model)
    given = {"lr": lr, "weight_decay": weight_decay, "gate_lr": gate_lr}
    for name, value in (given | {"norm_weight_decay": norm_weight_decay}).items():
        if value is not None:
            check_finite(name, value)
    gates = [module for module in model.modules() if isinstance(module, Attention)]
    in_gates = {p for gate in gates for p in gate.parameters()}
    exempt = {gate.get_parameter(name) for gate in gates for name in gate.no_weight_decay}
    # Those with the settings of all come first, as `fit` had them in earlier versions.
    groups: dict[tuple, list[nn.Parameter]] = {(lr, weight_decay): []}
    for parameter in model.parameters():
        rate = gate_lr if parameter in in_gates and gate_lr is not None else lr
        decay = weight_decay
        if parameter in exempt:
            decay = 0.0
        elif norm_weight_decay is not None and parameter not in in_gates and parameter.dim() < 2:
            decay = norm_weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters}
        | {k: v for k, v in zip(("lr", "weight_decay"), settings, strict=True) if v is not None}
        for settings, parameters in groups.items()
        if parameters
    ]
