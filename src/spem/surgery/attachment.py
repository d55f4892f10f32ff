"""Put gates into a network that somebody else built, and take them out again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.optim import Optimizer

from spem._checks import check_choice, check_module, check_optimizer, check_switch
from spem._messages import shorten
from spem.gates import GATES, Attention, Place, create_gate_at, gate_options
from spem.gates.attention import parameter_groups
from spem.norm import GatedBatchNorm2d
from spem.surgery.config import config_of, set_config
from spem.surgery.slots import (
    At,
    apply_mask,
    find_gates,
    find_module,
    find_slots,
    last_child,
    output_channels,
)


@dataclass(frozen=True)
class Attached:
    """One gate: the name of its module, its channels and parameters, and the path it runs on."""

    name: str
    channels: int
    parameters: int
    path: str


class Report(tuple[Attached, ...]):
    """What `attach` did, one entry a gate; prints as a table."""

    def __str__(self) -> str:
        width = max([len("module"), *(len(entry.name) for entry in self)])
        lines = [f"{'module':{width}}  channels  parameters  path"]
        lines += [
            f"{entry.name:{width}}  {entry.channels:8}  {entry.parameters:10}  {entry.path}"
            for entry in self
        ]
        total = sum(entry.parameters for entry in self)
        gates = "1 gate" if len(self) == 1 else f"{len(self)} gates"
        return "\n".join([*lines, f"{gates}, {total} parameters"])


def attach(
    model: nn.Module,
    gate: str,
    *,
    at: At = "residual",
    init: str | None = "identity",
    optimizer: Optimizer | None = None,
    mask: Sequence[int] | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Report:
    """Put gates into a model, in place, without a change to any existing key of its state dict.

    A slot that is exactly `nn.BatchNorm2d` becomes a `GatedBatchNorm2d`: the same object with the
    same parameters, buffers and hooks. Any other module whose output is (N, C, H, W) gets its gate
    by a forward hook. The gate's keys lie below `gate.` of the slot (of its last child, where the
    slot is a Sequential). The model can be copied, pickled and averaged as before.

    Args:
        model: any network of convolutions.
        gate: a key of `GATES`.
        at: "residual": the last norm of every residual branch of the ResNets, ResNeXts, Wide
            ResNets and RegNets of torchvision, timm and transformers, and of this library's
            networks (the last convolution of pre-activation blocks); "stage": the output of every
            stage; else a module's name, a pattern ("layer*.*.bn3"), a list of these, or a predicate
            (name, module) -> bool.
        init: "identity" leaves the model's outputs as they are; "paper" is the authors' start; None
            for a gate of your own that has no such option.
        optimizer: takes the new parameters into groups like its first one. Attach before you build
            a scheduler: `LambdaLR` does not take groups that come later.
        mask: 0 or 1 for every slot found, in order, to gate only some.
        dry_run: change nothing, only report.
        options: keyword arguments of the gate.

    Returns:
        A report of what was done.

    Raises:
        ValueError: nothing matches, a slot has a gate already, the model is compiled or wrapped,
            the optimizer does not hold its parameters, or a gate or option is not allowed.
    """
    check_module(model)
    check_choice("gate", gate, GATES)
    _refuse_wrapped(model)
    check_switch("dry_run", dry_run)
    if optimizer is not None:
        _check_optimizer(model, optimizer)
    slots = apply_mask(find_slots(model, at), mask)
    if init is not None and gate in GATES and "init" not in gate_options(gate):
        raise ValueError(
            f"init is {shorten(init)}, but gate {shorten(gate)} has no such option: give init=None"
        )
    gates = _build_gates(slots, gate, options if init is None else {**options, "init": init})
    if not dry_run:
        for slot, new in gates.values():
            _insert_gate(slot, new)
        _guard(model, gates)
        if optimizer is not None:
            _extend_optimizer(optimizer, [new for _, new in gates.values()])
    return Report(
        Attached(
            name=name,
            channels=new.channels,
            parameters=sum(p.numel() for p in new.parameters()),
            path="norm" if type(slot) in (nn.BatchNorm2d, GatedBatchNorm2d) else "hook",
        )
        for name, (slot, new) in gates.items()
    )


def detach(model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Take all gates out of a model, in place.

    The original classes and keys come back, with the weights as they are now.

    Args:
        model: a model that `attach` has changed, or one of `create_model` (the norms that DIANet
            adds to pre-activation blocks stay).
        optimizer: loses the parameters of the gates.

    Raises:
        ValueError: the model has no gate in a place that `attach` uses.
    """
    check_module(model)
    check_optimizer(optimizer)
    slots = list(find_gates(model))
    if not slots:
        raise ValueError("the model has no gates to detach")
    if optimizer is not None:
        _shrink_optimizer(optimizer, [gate for _, _, _, gate in slots])
    for _, slot, attribute, _ in slots:
        replace_gate(slot, attribute, None)
    if (config := config_of(model)) is not None:
        set_config(model, config.without_gates())
    unguard(model)


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
    if vars(slot).pop(_CONVERTED, False):
        del vars(slot)["sync"]
        slot.__class__ = nn.BatchNorm2d
    elif isinstance(slot, GatedBatchNorm2d):
        slot.gate = None


def unguard(model: nn.Module) -> None:
    """Undo what `attach` did beside the gates: the check at every forward, and the lost `config`.

    The `config` comes back, as that of a network without gates, where no gate is left.
    """
    for module in list(model.modules()):
        guard = vars(module).pop(_ATTACHED, None)
        if guard is not None:
            _unhook(module._forward_pre_hooks, check_gates)
            if guard["config"] is not None and not any(find_gates(module)):
                set_config(module, guard["config"].without_gates())


def apply_gate(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Pass a module's output through the gate that is registered on it (a forward hook)."""
    if not isinstance(output, Proxy) and (not isinstance(output, Tensor) or output.dim() != 4):
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"a gate needs the output (N, C, H, W), got {kind}: attach it elsewhere")
    return cast(Attention, module.gate)(output)


def check_gates(model: nn.Module, args: Any) -> None:
    """Raise RuntimeError if an attached gate is no longer applied (a forward pre-hook)."""
    for name in vars(model)[_ATTACHED]["names"]:
        module = last_child(find_module(model, name) or nn.Identity())
        gated = isinstance(module, GatedBatchNorm2d) or apply_gate in module._forward_hooks.values()
        if not gated or not isinstance(getattr(module, "gate", None), Attention):
            raise RuntimeError(
                f"the gate of {shorten(name)} is lost: something replaced that module, as fusing "
                "and converting norms do, or detached it alone; detach the gates of the whole "
                "model before, or attach them after"
            )


# Plain attributes, so that copies and pickles of a model carry them.
_ATTACHED = "_attached_gates"
_CONVERTED = "_was_batch_norm"


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "_orig_mod"):
            raise ValueError("the model is compiled: attach gates first, then call torch.compile")
        if type(module).__name__ in ("DistributedDataParallel", "DataParallel", "FSDPModule"):
            raise ValueError(f"the model is wrapped in {type(module).__name__}: attach gates first")


def _build_gates(
    slots: dict[str, nn.Module], gate: str, options: dict[str, Any]
) -> dict[str, tuple[nn.Module, Attention]]:
    """Build the gates of all slots, before anything is changed; a shared module gets one gate."""
    built: dict[str, tuple[nn.Module, Attention]] = {}
    leader: Attention | None = None
    for name, slot in slots.items():
        if any(slot is other for other, _ in built.values()):
            continue
        if getattr(slot, "gate", None) is not None:
            raise ValueError(f"{shorten(name)} has a gate already, or a part of that name")
        channels = output_channels(name, slot)
        # Neighbours of one width share a unit, as a stage does.
        if leader is not None and leader.channels != channels:
            leader = None
        new = create_gate_at(gate, channels, Place(leader=leader), options)
        leader = new if leader is None else leader
        built[name] = slot, _move_to(slot, new)
    return built


def _move_to(slot: nn.Module, gate: Attention) -> Attention:
    """Move a gate to the device of its slot, and to its dtype where that is float32 or wider."""
    tensor = next((t for t in (*slot.parameters(), *slot.buffers()) if t.is_floating_point()), None)
    if tensor is None:
        return gate.train(slot.training)
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return gate.to(tensor.device, dtype).train(slot.training)


def _insert_gate(slot: nn.Module, gate: Attention) -> None:
    if type(slot) is nn.BatchNorm2d:
        slot.__class__ = GatedBatchNorm2d
        vars(slot)["sync"] = False
        vars(slot)[_CONVERTED] = True
    elif not isinstance(slot, GatedBatchNorm2d):
        slot.register_forward_hook(apply_gate)
    slot.gate = gate


def _unhook(hooks: dict[int, Any], function: Callable[..., Any]) -> None:
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _guard(model: nn.Module, names: Iterable[str]) -> None:
    """Check at every forward of the model that its gates are still applied.

    The `config` of a network of `create_model` does not know the new gates: it is put aside.
    """
    if _ATTACHED not in vars(model):
        vars(model)[_ATTACHED] = {"names": [], "config": config_of(model)}
        set_config(model, None)
        model.register_forward_pre_hook(check_gates)
    vars(model)[_ATTACHED]["names"] += names


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    check_optimizer(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError(
            "the optimizer holds no parameter of this model: give the one that trains it, or none"
        )


def _extend_optimizer(optimizer: Optimizer, gates: list[Attention]) -> None:
    """Add the gates' parameters in groups like the first, some without weight decay."""
    template = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    for gate_parameters, changes in parameter_groups(gates):
        optimizer.add_param_group({**template, **changes, "params": gate_parameters})


def _shrink_optimizer(optimizer: Optimizer, gates: list[Attention]) -> None:
    gone = {parameter for gate in gates for parameter in gate.parameters()}
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for group in list(optimizer.param_groups):
        group["params"] = [p for p in group["params"] if p not in gone]
        if not group["params"]:
            optimizer.param_groups.remove(group)
