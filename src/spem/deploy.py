"""Deployment: what is constant in a trained network is folded into its norms."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spem.constancy import GateStatistics
from spem.fold import fold_batchnorms
from spem.gates import ASR, Gate
from spem.norm import GatedBatchNorm2d


def deploy(
    model: nn.Module,
    *,
    constant_gates: float | None = None,
    report: Mapping[str, GateStatistics] | None = None,
    fold_batchnorm: bool = False,
    example: Tensor | None = None,
) -> nn.Module:
    """Return a copy of a model in evaluation mode, without the gates that are constant.

    ASR gates are constant by construction and disappear into the scale and shift of their norm,
    exactly: the network has the parameters of the plain one (of ASR + SE, of the one with SE).

    Args:
        model: a trained network, left as it is.
        constant_gates: also replace gates by their mean multipliers whose spread in `report` is at
            most this, as far as they sit on a norm; this changes the function a little.
        report: what `gate_report` measured of this model.
        fold_batchnorm: also fold every `GatedBatchNorm2d` into the convolution that alone feeds it;
            what is left of it is its gate, addition and ReLU. The result has no `config` any more.
        example: an input to see what feeds what; None for a 32×32 image of a network of
            `create_model`.

    Raises:
        ValueError: one of constant_gates and report was given without the other, the threshold is
            negative, a norm with a constant gate has no scale and shift of its own, or an example
            is missing.
    """
    if (constant_gates is None) != (report is None):
        raise ValueError("constant_gates and report belong together: measure with gate_report")
    if constant_gates is not None and not constant_gates >= 0:
        raise ValueError(f"constant_gates is {constant_gates}, must be at least 0")
    deployed = copy.deepcopy(model).eval()
    folded = []
    for name, norm in deployed.named_modules():
        if not isinstance(norm, GatedBatchNorm2d) or norm.gate is None:
            continue
        if isinstance(norm.gate, ASR):
            behind = norm.gate.behind
            _fold(name, norm, norm.gate.gain * norm.gate.constant()[0])
            norm.gate = behind
        elif report and constant_gates is not None and isinstance(norm.gate, Gate):
            statistics = report[f"{name}.gate"]
            if statistics.spread <= constant_gates:
                _fold(name, norm, statistics.mean)
                norm.gate = None
                folded.append(f"{name}.gate")
    _rename(deployed)
    if folded and report:
        _mask(deployed, [name not in folded for name in report])
    if fold_batchnorm:
        fold_batchnorms(deployed, _example(deployed) if example is None else example)
        vars(deployed).pop("config", None)
    return deployed


def _example(model: nn.Module) -> Tensor:
    config = getattr(model, "config", None)
    if not isinstance(config, dict):
        raise ValueError("fold_batchnorm needs an example input for a network of your own")
    first = next(model.parameters())
    return torch.zeros(1, config["in_channels"], 32, 32, dtype=first.dtype, device=first.device)


@torch.no_grad()
def _fold(name: str, norm: GatedBatchNorm2d, multiplier: Tensor) -> None:
    if not norm.affine:
        raise ValueError(f"the norm {name!r} has no scale and shift to fold its gate into")
    scales_shift = not (isinstance(norm.gate, Gate) and norm.gate.reads_input)
    for parameter in (norm.weight, norm.bias) if scales_shift else (norm.weight,):
        parameter.copy_(parameter.double() * multiplier.to(parameter.device).double())


def _rename(model: nn.Module) -> None:
    """Let the `config` of a network of `create_model` name what it has become."""
    config = getattr(model, "config", None)
    if isinstance(config, dict) and config["gate"] == "asr":
        options = config["gate_options"]
        both = options.get("both", False)
        vars(model)["config"] = {
            **config,
            "gate": options.get("attention", "se") if both else None,
            "placement": (config["placement"] or ASR.placement) if both else None,
            "mask": config["mask"] if both else None,
            "gate_options": dict(options.get("attention_options") or {}) if both else {},
        }


def _mask(model: nn.Module, stays: list[bool]) -> None:
    """Let the `config` of a network of `create_model` tell which gates are left."""
    config = getattr(model, "config", None)
    if isinstance(config, dict):
        left = iter(stays)
        places = config["mask"] or [1] * len(stays)
        mask = [int(bit and next(left)) for bit in places]
        vars(model)["config"] = {**config, "mask": mask}
