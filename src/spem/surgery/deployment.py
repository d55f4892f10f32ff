"""Deploy a trained network: fold what is constant in its gates and norms into other layers."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from spem._checks import check_finite, check_module, check_switch
from spem._messages import shorten
from spem.functional import check_map
from spem.gates import Attention, Gate, GateStatistics
from spem.gates.record import pooled_gates
from spem.norm import GatedBatchNorm2d
from spem.surgery.config import config_of, set_config
from spem.surgery.fold import fold_batchnorms, fold_gates, has_own_weights, is_plain_conv
from spem.surgery.guard import replace_gate, unguard
from spem.surgery.slots import find_gates


def deploy(
    model: nn.Module,
    *,
    constant_gates: float | None = None,
    report: Mapping[str, GateStatistics] | None = None,
    fold_batchnorm: bool = False,
    example: Tensor | None = None,
) -> nn.Module:
    """Return a copy of a model in evaluation mode, without the gates that are constant.

    Gates that are constant by construction, as ASR is, disappear, exactly, into the scale and shift
    of the norm before them, or into the convolution where there is none: the network has the
    parameters of the one without gates (of ASR + SE, of the one with SE).

    Args:
        model: a trained network, which is not changed.
        constant_gates: also replace by its mean multipliers every gate on a norm whose spread in
            `report` is at most this; this changes the function a little. Gates that hand a state on
            to others, as DIANet's do, stay.
        report: what `gate_report` measured of this model.
        fold_batchnorm: also fold every `GatedBatchNorm2d` into the convolution that alone feeds it;
            its gate, addition and ReLU remain. The constants of the pooled gates are computed
            beforehand (`Gate.deployed`; SPEM keeps five vectors), and no statistic is pooled that
            they do not read. The result has no `config`.
        example: an input that shows what feeds what; None for a 32×32 image of a network of
            `create_model`.

    Raises:
        ValueError: one of constant_gates and report was given without the other, the threshold is
            negative, the report is of another model, a constant gate follows no norm or convolution
            into which it could be folded, or an example is missing.
    """
    check_module(model)
    if (constant_gates is None) != (report is None):
        raise ValueError("constant_gates and report belong together: measure with gate_report")
    if constant_gates is not None:
        check_finite("constant_gates", constant_gates)
    check_switch("fold_batchnorm", fold_batchnorm)
    if example is not None:
        check_map("example", example)
    deployed = copy.deepcopy(model).eval()
    if report is not None and constant_gates is not None:
        _fold_nearly_constant(deployed, report, constant_gates)
    _fold_constant(deployed)
    unguard(deployed)
    if fold_batchnorm:
        fold_batchnorms(deployed, _make_example(deployed) if example is None else example)
        fold_gates(deployed)
        set_config(deployed, None)
    return deployed


def _fold_nearly_constant(
    model: nn.Module, report: Mapping[str, GateStatistics], threshold: float
) -> None:
    """Fold the gates of a small spread into their norms, and clear their bits in the mask."""
    gates = pooled_gates(model)
    if not isinstance(report, Mapping):
        raise ValueError(f"report is {shorten(report)}, must be what gate_report returned")
    if gates.keys() != report.keys():
        raise ValueError("the report is of another model: its gates have other names")
    folded = set()
    for name, gate in gates.items():
        norm = model.get_submodule(name.rpartition(".")[0])
        constant = report[name].spread <= threshold
        if constant and isinstance(norm, GatedBatchNorm2d) and not gate.shares_unit:
            _fold_into_norm(name, norm, report[name].mean)
            norm.gate = None
            folded.add(name)
    config = config_of(model)
    if folded and config is not None:
        remains = iter([name not in folded for name in gates])
        mask = [int(bit and next(remains)) for bit in config.mask or [1] * len(gates)]
        set_config(model, replace(config, mask=mask))


def _fold_constant(model: nn.Module) -> None:
    """Fold the constant part of every gate that has one, and let the `config` name what is left."""
    folded: Attention | None = None
    for name, module, attribute, gate in list(find_gates(model)):
        if (part := gate.constant_part()) is None:
            continue
        folded, (multiplier, rest) = gate, part
        if isinstance(module, GatedBatchNorm2d):
            _fold_into_norm(name, module, multiplier)
        else:
            _fold_into_conv(name, module, attribute, multiplier)
        replace_gate(module, attribute, rest)
    config = config_of(model)
    if folded is None or config is None or config.gate is None:
        return
    if folded.rest_options is None:
        set_config(model, config.without_gates())
    else:
        gate, options = folded.rest_options
        placement = config.placement or folded.placement
        set_config(model, replace(config, gate=gate, gate_options=options, placement=placement))


@torch.no_grad()
def _fold_into_norm(name: str, norm: GatedBatchNorm2d, multiplier: Tensor) -> None:
    if not norm.affine:
        raise ValueError(f"the norm {shorten(name)} has no scale and shift to fold its gate into")
    scales_shift = not (isinstance(norm.gate, Gate) and norm.gate.reads_input)
    _refuse_computed(name, norm)
    for key in ("weight", "bias") if scales_shift else ("weight",):
        _scale(norm, key, multiplier)


@torch.no_grad()
def _fold_into_conv(name: str, module: nn.Module, attribute: str, multiplier: Tensor) -> None:
    """Scale the convolution that a gate follows, the last one of a block, or precedes."""
    conv = module
    if attribute != "gate":  # of a block of ours
        conv = getattr(module, "conv3", getattr(module, "conv2", module))
    if not is_plain_conv(conv):
        raise ValueError(
            f"the constant gate of {shorten(name)} follows neither a norm nor a convolution of"
            " PyTorch's own class, into which it could be folded: attach it to one of these"
        )
    _refuse_computed(name, conv)
    if attribute != "gate" and conv is module:  # the gate of a convolution's input
        _scale(conv, "weight", multiplier[:, None, None])
        return
    _scale(conv, "weight", multiplier[:, None, None, None])
    if conv.bias is not None:
        _scale(conv, "bias", multiplier)


def _scale(module: nn.Module, key: str, factor: Tensor) -> None:
    """Multiply a parameter, which other modules may share: theirs stays."""
    old = module.get_parameter(key)
    new = (old.double() * factor.to(old.device).double()).to(old.dtype)
    setattr(module, key, nn.Parameter(new, old.requires_grad))


def _refuse_computed(name: str, module: nn.Module) -> None:
    if not has_own_weights(module):
        raise ValueError(
            f"the weights at {shorten(name)}, into which its gate is folded, are computed from"
            " others, as pruning and parametrisations do: make them permanent before, by"
            " torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
        )


def _make_example(model: nn.Module) -> Tensor:
    config = config_of(model)
    if config is None:
        raise ValueError(
            "fold_batchnorm needs an example input for a network of your own: give example="
        )
    first = next(model.parameters())
    return torch.zeros(1, config.in_channels, 32, 32, dtype=first.dtype, device=first.device)
