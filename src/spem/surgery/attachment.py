"""Put gates into a network that somebody else built, and take them out again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from spem._checks import check_choice, check_module, check_optimizer, check_switch
from spem._messages import shorten
from spem.gates import GATES, Attention, Place, create_gate_at, gate_options
from spem.norm import CONVERTED, GatedBatchNorm2d
from spem.surgery.blocks import fuse_blocks, unfuse_blocks
from spem.surgery.config import config_of, set_config

# Pickles of earlier versions look for the two hooks here.
from spem.surgery.guard import (
    apply_gate as apply_gate,
)
from spem.surgery.guard import (
    check_gates as check_gates,
)
from spem.surgery.guard import guard, insert_gate, replace_gate, unguard
from spem.surgery.iteration import refuse_iterating
from spem.surgery.optimizers import check_takes, extend_optimizer, shrink_optimizer
from spem.surgery.slots import At, apply_mask, find_gates, find_slots
from spem.surgery.widths import Channels, Example, find_widths


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
    channels: Channels | None = None,
    example: Example | None = None,
    optimizer: Optimizer | None = None,
    mask: Sequence[int] | None = None,
    dry_run: bool = False,
    then: Sequence[Mapping[str, Any]] = (),
    version: str | None = None,
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
        at: "residual": the end of every residual branch, of DenseNets the new channels, of VGGs
            every norm; "stage": the output of every stage; "depthwise": behind the depthwise
            convolutions of inverted residual blocks, where MobileNetV3 and EfficientNet have SE;
            for the families that `docs/in-your-network.md` lists. Else a module's name, a pattern
            ("layer*.*.bn3"), a list of these, or a predicate (name, module) -> bool.
        init: "identity" leaves the model's outputs as they are; "paper" is the authors' start; None
            for a gate of your own that has no such option.
        channels: of the outputs of all slots, or of some by their names. What is not told is
            inferred from the layers, and checked at every forward pass.
        example: an input of the model, or a tuple of inputs. The model is run once on it, in
            evaluation mode and without gradients, and the channels are measured.
        optimizer: takes the new parameters into groups like its first one; where a scheduler was
            built for it, they join its groups.
        mask: 0 or 1 for every slot found, in order, to gate only some.
        dry_run: change nothing, only report.
        then: more gates to attach, each as `attachment` describes it.
        version: of the library that wrote an attachment; errors name it where it is another one.
        options: keyword arguments of the gate.

    Returns:
        A report of what was done.

    Raises:
        ValueError: nothing matches, a slot has a gate already, its channels are not known, its
            forward pass goes through its own children, the model is compiled or wrapped, the
            optimizer does not hold its parameters or cannot take others, or a gate or option is not
            allowed.
    """
    check_module(model)
    check_choice("gate", gate, GATES)
    _refuse_wrapped(model)
    check_switch("dry_run", dry_run)
    check_optimizer(optimizer)
    first = {"gate": gate, "at": at, "init": init, "channels": channels, **options}
    try:
        plans = [_plan(model, first, example, mask), *(_plan(model, c) for c in _check_then(then))]
        built = _merge(plans)
    except ValueError as error:
        if version in (None, own := installed_version("spem")):
            raise
        raise ValueError(
            f"{error} (the attachment is of spem {shorten(version)[1:-1]}, this is spem {own})"
        ) from error
    gates = [new for _, new in built.values()]
    if optimizer is not None:
        check_takes(model, optimizer, gates)
    if not dry_run:
        for plan in plans:
            _carry_out(model, plan)
        if optimizer is not None:
            extend_optimizer(model, optimizer, gates)
    return Report(
        Attached(
            name=name,
            channels=new.channels,
            parameters=sum(p.numel() for p in new.parameters()),
            path="norm" if type(slot) in (nn.BatchNorm2d, GatedBatchNorm2d) else "hook",
        )
        for name, (slot, new) in built.items()
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
    for name, slot, _, _ in slots:
        if CONVERTED in vars(slot) and type(slot) is not GatedBatchNorm2d:
            raise ValueError(
                f"{shorten(name)} is a {type(slot).__name__} by now: undo before what changed its"
                " class, like torch.nn.utils.parametrize.remove_parametrizations"
            )
    if optimizer is not None:
        shrink_optimizer(optimizer, [gate for _, _, _, gate in slots])
    for _, slot, attribute, _ in slots:
        replace_gate(slot, attribute, None)
    unfuse_blocks(model)
    if (config := config_of(model)) is not None:
        set_config(model, config.without_gates())
    unguard(model)


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "_orig_mod"):
            raise ValueError("the model is compiled: attach gates first, then call torch.compile")
        names = [base.__name__ for base in type(module).__mro__]  # FSDP puts its own class before
        for name in {"DistributedDataParallel", "DataParallel", "FSDPModule"} & {*names}:
            raise ValueError(f"the model is wrapped in {name}: attach gates first")


_Gates = dict[str, tuple[nn.Module, Attention]]


class _Plan(NamedTuple):
    """What one call attaches: its arguments without the options, the options, and the gates."""

    arguments: dict[str, Any]
    options: dict[str, Any]
    gates: _Gates


def _check_then(calls: object) -> list[dict[str, Any]]:
    """Return the arguments of further calls of `attach`."""
    if not isinstance(calls, list | tuple) or not all(
        isinstance(call, Mapping) and {"gate", "at"} <= call.keys() for call in calls
    ):
        raise ValueError(f"then is {shorten(calls)}, must be a list of what attachment returns")
    return [dict(call) for call in calls]


def _plan(
    model: nn.Module,
    call: dict[str, Any],
    example: Example | None = None,
    mask: Sequence[int] | None = None,
) -> _Plan:
    """Build the gates of one call, before anything is changed."""
    gate, at, init = call["gate"], call["at"], call.get("init")
    arguments = {"gate": gate, "at": at, "init": init, "channels": call.get("channels")}
    options = {key: value for key, value in call.items() if key not in arguments}
    slots = apply_mask(find_slots(model, at), mask)
    for name, slot in slots.items():
        refuse_iterating(name, slot)
    if init is not None and gate in GATES and "init" not in gate_options(gate):
        raise ValueError(
            f"init is {shorten(init)}, but gate {shorten(gate)} has no such option: give init=None"
        )
    widths = find_widths(model, slots, arguments["channels"], example)
    given = options if init is None else {**options, "init": init}
    return _Plan(arguments, options, _build_gates(slots, widths, gate, given))


def _build_gates(
    slots: dict[str, nn.Module], widths: dict[str, int], gate: str, options: dict[str, Any]
) -> _Gates:
    """Build the gates of all slots; a shared module gets one gate."""
    built: _Gates = {}
    leader: Attention | None = None
    for name, slot in slots.items():
        if any(slot is other for other, _ in built.values()):
            continue
        if getattr(slot, "gate", None) is not None:
            raise ValueError(f"{shorten(name)} has a gate already, or a part of that name")
        # Neighbours of one width share a unit, as a stage does.
        if leader is not None and leader.channels != widths[name]:
            leader = None
        new = create_gate_at(gate, widths[name], Place(leader=leader), options)
        leader = new if leader is None else leader
        built[name] = slot, _move_to(slot, new)
    return built


def _merge(plans: list[_Plan]) -> _Gates:
    """Return the gates of all calls by name; no module may get two."""
    merged: _Gates = {}
    for plan in plans:
        for name, (slot, gate) in plan.gates.items():
            if any(slot is other for other, _ in merged.values()):
                raise ValueError(f"{shorten(name)} would get two gates: name it once")
            merged[name] = slot, gate
    return merged


def _carry_out(model: nn.Module, plan: _Plan) -> None:
    for name, (slot, gate) in plan.gates.items():
        insert_gate(name, slot, gate)
    fuse_blocks(model)
    widths = {name: gate.channels for name, (_, gate) in plan.gates.items()}
    guard(model, {**plan.arguments, "at": [*widths], "channels": widths, **plan.options})


def _move_to(slot: nn.Module, gate: Attention) -> Attention:
    """Move a gate to the device of its slot, and to its dtype where that is float32 or wider."""
    tensor = next((t for t in (*slot.parameters(), *slot.buffers()) if t.is_floating_point()), None)
    if tensor is None:
        return gate.train(slot.training)
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return gate.to(tensor.device, dtype).train(slot.training)
