"""How a gate sits on a module, what a model remembers of its gates, and the check of every forward.

A model carries what was attached in a plain attribute, so that copies and pickles have it, too.
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, cast

from torch import Tensor, nn

from spem._checks import check_module, sizes_are_known
from spem._messages import shorten
from spem.gates import Attention
from spem.norm import CONVERTED, GatedBatchNorm2d
from spem.surgery.config import config_of, set_config
from spem.surgery.placements import find_module
from spem.surgery.slots import find_gates, last_child
from spem.surgery.watch import forget, watch_training
from spem.surgery.widths import describe_mismatch, describe_output

_ATTACHED = "_attached_gates"
_NAME = "_gated_as"


def attachment(model: nn.Module) -> dict[str, Any]:
    """Return what `attach` has put into a model, in a form that JSON can hold.

    `spem.attach(model, **attachment)` puts gates of the same kind, options and widths into the same
    places of a model like it. The weights of the gates, and their gain, which `init` chose, come
    from a state dict that is loaded afterwards.

    Args:
        model: a network that `attach` has changed, or that contains such a network.

    Returns:
        The arguments for `attach`: "gate", "at" (the names of the modules), "channels" (of each, by
        its name), "init", the options of the gate, and "version" (of this library). Where `attach`
        was called several times, "then" lists the same of the later calls.

    Raises:
        ValueError: the model has no gates of `attach` (those of `create_model` are in the model's
            `config`), a gate is lost, or an option is no value that JSON can hold.

    Example:
        >>> import spem
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> report = spem.attach(model, "se", at="1", reduction=4)
        >>> spem.attachment(model)["at"]
        ['1']
    """
    check_module(model)
    if not is_attached(model):
        raise ValueError(
            "the model has no gates that attach has put in: call spem.attach first; those of "
            "create_model are in the model's config, those that an earlier version attached are "
            "not described"
        )
    calls: list[dict[str, Any]] = []
    for name, module in model.named_modules():
        if _ATTACHED in vars(module):
            check_gates(module, None)
            calls += [_below(name, call) for call in vars(module)[_ATTACHED]["calls"]]
    first, *later = calls
    found = {**first, **({"then": later} if later else {}), "version": version("spem")}
    try:
        return json.loads(json.dumps(found))
    except (TypeError, ValueError) as error:
        raise ValueError(f"an option of the gates is no value for JSON: {error}") from error


def is_attached(model: nn.Module) -> bool:
    """Return whether a model, or a part of it, has gates that `attachment` can describe."""
    guards = [vars(m)[_ATTACHED] for m in model.modules() if _ATTACHED in vars(m)]
    told = [name for each in guards for call in each.get("calls", []) for name in call["at"]]
    return bool(guards) and len(told) == sum(len(each["names"]) for each in guards)


def _below(prefix: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was attached to a part of a model, with the names that the model gives it."""
    full = {name: f"{prefix}.{name}".lstrip(".") for name in call["at"]}
    channels = {full[name]: width for name, width in call["channels"].items()}
    return {**call, "at": list(full.values()), "channels": channels}


def insert_gate(name: str, slot: nn.Module, gate: Attention) -> None:
    """Put a gate on a module: into a norm, behind the output of any other.

    Args:
        name: of the module, for errors at its forward pass.
        slot: the module.
        gate: the gate.
    """
    if type(slot) is nn.BatchNorm2d:
        slot.__class__ = GatedBatchNorm2d
        vars(slot)["sync"] = False
        vars(slot)[CONVERTED] = True
    elif not isinstance(slot, GatedBatchNorm2d):
        slot.register_forward_hook(apply_gate)
        vars(slot)[_NAME] = name
    slot.gate = gate


def replace_gate(slot: nn.Module, attribute: str, gate: Attention | None) -> None:
    """Put another gate in the place of a module's gate, or take it out as `detach` does.

    Args:
        slot: the module that has the gate.
        attribute: the name of its attribute.
        gate: the new gate; None for none.
    """
    if gate is not None or attribute != "gate":
        setattr(slot, attribute, gate)
        return
    del slot.gate
    _unhook(slot._forward_hooks, apply_gate)
    vars(slot).pop(_NAME, None)
    if vars(slot).pop(CONVERTED, False):
        del vars(slot)["sync"]
        slot.__class__ = nn.BatchNorm2d
    elif isinstance(slot, GatedBatchNorm2d):
        slot.gate = None


def guard(model: nn.Module, call: dict[str, Any]) -> None:
    """Remember what was attached, and check at every forward of the model that it still is.

    The `config` of a network of `create_model` does not know the new gates: it is put aside.

    Args:
        model: the network that has the gates.
        call: the arguments for `attach`, as `attachment` returns them.
    """
    if _ATTACHED not in vars(model):
        vars(model)[_ATTACHED] = {"names": [], "config": config_of(model)}
        set_config(model, None)
        model.register_forward_pre_hook(check_gates)
    vars(model)[_ATTACHED]["names"] += call["at"]
    vars(model)[_ATTACHED].setdefault("calls", []).append(call)
    forget(model)


def unguard(model: nn.Module) -> None:
    """Undo what `attach` did beside the gates: the check at every forward, and the lost `config`.

    The `config` comes back, as that of a network without gates, where no gate is left.
    """
    for module in list(model.modules()):
        _unhook(module._forward_pre_hooks, watch_training)  # of `create_model`
        attached = vars(module).pop(_ATTACHED, None)
        if attached is not None:
            _unhook(module._forward_pre_hooks, check_gates)
            if attached["config"] is not None and not any(find_gates(module)):
                set_config(module, attached["config"].without_gates())


def apply_gate(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Pass a module's output through the gate that is registered on it (a forward hook)."""
    name, gate = vars(module).get(_NAME, type(module).__name__), cast(Attention, module.gate)
    known = sizes_are_known(output)
    if known and (not isinstance(output, Tensor) or output.dim() != 4):
        raise ValueError(describe_output(name, output))
    if known and output.shape[1] != gate.channels:
        raise ValueError(describe_mismatch(name, gate.channels, output))
    return gate(output)


def check_gates(model: nn.Module, args: Any) -> None:
    """Raise RuntimeError if an attached gate is no longer applied (a forward pre-hook).

    Warns where training leaves gates out.
    """
    watch_training(model)
    for name in vars(model)[_ATTACHED]["names"]:
        module = last_child(find_module(model, name) or nn.Identity())
        gated = isinstance(module, GatedBatchNorm2d) or apply_gate in module._forward_hooks.values()
        if not gated or not isinstance(getattr(module, "gate", None), Attention):
            around = name.rpartition(".")[0]
            raise RuntimeError(
                f"the gate of {shorten(name)} is lost: something replaced that module, as fusing "
                "and converting norms do, or detached it alone; detach the gates of the whole "
                "model before, or attach them after"
                + (f", or around it, like at={shorten(around)}, which fusing leaves" * bool(around))
            )


def _unhook(hooks: dict[int, Any], function: Callable[..., Any]) -> None:
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]
