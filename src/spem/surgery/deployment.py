"""Deployment: what is constant in a trained network is folded into its norms."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spem.gates import ASR, DIANet, Gate
from spem.gates.record import GateStatistics, pooled_gates
from spem.norm import GatedBatchNorm2d
from spem.surgery.attachment import replace_gate, unguard
from spem.surgery.config import own_config
from spem.surgery.fold import fold_batchnorms, fold_gates


def deploy(
    model: nn.Module,
    *,
    constant_gates: float | None = None,
    report: Mapping[str, GateStatistics] | None = None,
    fold_batchnorm: bool = False,
    example: Tensor | None = None,
) -> nn.Module:
    """Return a copy of a model in evaluation mode, without the gates that are constant.

    ASR gates are constant by construction and disappear, exactly, into the scale and shift of the
    norm before them, or into the convolution where there is none: the network has the parameters of
    the plain one (of ASR + SE, of the one with SE).

    Args:
        model: a trained network, left as it is.
        constant_gates: also replace gates by their mean multipliers whose spread in `report` is at
            most this, as far as they sit on a norm (DIANet's do not go: they carry a state); this
            changes the function a little.
        report: what `gate_report` measured of this model.
        fold_batchnorm: also fold every `GatedBatchNorm2d` into the convolution that alone feeds it;
            what is left of it is its gate, addition and ReLU. The constants of the pooled gates are
            computed beforehand (`Gate.deployed`; SPEM keeps five vectors), and no statistic is
            pooled that they do not read. The result has no `config` any more.
        example: an input to see what feeds what; None for a 32×32 image of a network of
            `create_model`.

    Raises:
        ValueError: one of constant_gates and report was given without the other, the threshold is
            negative, the report is of another model, a constant gate stands behind nothing that it
            could be folded into, or an example is missing.
    """
    if (constant_gates is None) != (report is None):
        raise ValueError("constant_gates and report belong together: measure with gate_report")
    if constant_gates is not None and not constant_gates >= 0:
        raise ValueError(f"constant_gates is {constant_gates}, must be at least 0")
    deployed = copy.deepcopy(model).eval()
    if report is not None and constant_gates is not None:
        _fold_constant(deployed, report, constant_gates)
    _fold_asr(deployed)
    unguard(deployed)
    if fold_batchnorm:
        fold_batchnorms(deployed, _example(deployed) if example is None else example)
        fold_gates(deployed)
        if own_config(deployed) is not None:
            del vars(deployed)["config"]
    return deployed


def _fold_constant(
    model: nn.Module, report: Mapping[str, GateStatistics], threshold: float
) -> None:
    """Fold the gates of a small spread into their norms, and tell the `config` which are left."""
    gates = pooled_gates(model)
    if gates.keys() != report.keys():
        raise ValueError("the report is of another model: its gates have other names")
    folded = set()
    for name, gate in gates.items():
        norm = model.get_submodule(name.rpartition(".")[0])
        constant = report[name].spread <= threshold
        # A gate of DIANet carries the state of its stage on to the next.
        if constant and isinstance(norm, GatedBatchNorm2d) and not isinstance(gate, DIANet):
            _fold_into_norm(name, norm, report[name].mean)
            norm.gate = None
            folded.add(name)
    config = own_config(model)
    if folded and config is not None:
        stays = iter([name not in folded for name in gates])
        places = config["mask"] or [1] * len(gates)
        vars(model)["config"] = {**config, "mask": [int(bit and next(stays)) for bit in places]}


def _fold_asr(model: nn.Module) -> None:
    """Fold the constants of all ASR gates into what stands before them."""
    found = False
    for name, module in list(model.named_modules()):
        place = getattr(module, "gate_attribute", "gate")
        gate = getattr(module, place, None)
        if not isinstance(gate, ASR):
            continue
        found = True
        multiplier = gate.gain * gate.constant()[0]
        if isinstance(module, GatedBatchNorm2d):
            _fold_into_norm(name, module, multiplier)
        else:
            _fold_into_conv(name, _last_conv(module), multiplier)
        replace_gate(module, place, gate.behind)
    if found:
        _rename(model)


def _last_conv(module: nn.Module) -> nn.Module:
    """Return the convolution that ends the branch of a block, or the module itself."""
    return getattr(module, "conv3", getattr(module, "conv2", module))


@torch.no_grad()
def _fold_into_conv(name: str, conv: nn.Module, multiplier: Tensor) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"the ASR gate of {name!r} follows neither a norm nor a convolution")
    conv.weight.copy_(conv.weight.double() * multiplier.double()[:, None, None, None])
    if conv.bias is not None:
        conv.bias.copy_(conv.bias.double() * multiplier.double())


def _example(model: nn.Module) -> Tensor:
    config = own_config(model)
    if config is None:
        raise ValueError("fold_batchnorm needs an example input for a network of your own")
    first = next(model.parameters())
    return torch.zeros(1, config["in_channels"], 32, 32, dtype=first.dtype, device=first.device)


@torch.no_grad()
def _fold_into_norm(name: str, norm: GatedBatchNorm2d, multiplier: Tensor) -> None:
    if not norm.affine:
        raise ValueError(f"the norm {name!r} has no scale and shift to fold its gate into")
    scales_shift = not (isinstance(norm.gate, Gate) and norm.gate.reads_input)
    for parameter in (norm.weight, norm.bias) if scales_shift else (norm.weight,):
        parameter.copy_(parameter.double() * multiplier.to(parameter.device).double())


def _rename(model: nn.Module) -> None:
    """Let the `config` of a network of `create_model` name what it has become."""
    config = own_config(model)
    if config is not None:
        options = config["gate_options"]
        both = options.get("both", False)
        vars(model)["config"] = {
            **config,
            "gate": options.get("attention", "se") if both else None,
            "placement": (config["placement"] or ASR.placement) if both else None,
            "mask": config["mask"] if both else None,
            "gate_options": dict(options.get("attention_options") or {}) if both else {},
        }
