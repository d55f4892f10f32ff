"""Optimizers, schedulers and averages that exist when gates come."""

import copy

import pytest
import torch
from foreign import Net, X
from gatings import EACH_GATE, OPTIONS
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

import spem
from spem import attach, detach

KINDS = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)]
KINDS = [name for name in KINDS if name not in ("Optimizer", "SparseAdam", "Muon", "LBFGS")]
CPU_FUSED = ("SGD", "Adam", "AdamW")


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def held(optimizer):
    return sorted(id(p) for group in optimizer.param_groups for p in group["params"])


def check_gates_move(model, optimizer):
    """The optimizer holds every parameter once, and three steps move those of all gates."""
    assert held(optimizer) == sorted(map(id, model.parameters()))
    gates = {n: p for n, p in model.named_parameters() if ".gate." in n}
    for parameter in gates.values():  # at the start some have no gradient
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    before = {name: parameter.detach().clone() for name, parameter in gates.items()}
    for _ in range(3):
        step(model, optimizer)
    assert not [name for name, parameter in gates.items() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_takes_gates_or_names_the_way_out(kind, named):
    model = Net()
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = getattr(torch.optim, kind)(parameters, lr=0.01)
    step(model, optimizer)
    if kind == "Adagrad":
        with pytest.raises(ValueError, match="Adagrad takes no parameters later: attach gates f"):
            attach(model, "srm", optimizer=optimizer)
        assert not any(".gate." in name for name in model.state_dict())
        return
    attach(model, "eca", at="stage", optimizer=optimizer)
    attach(model, "srm", optimizer=optimizer)
    check_gates_move(model, optimizer)
    if named:
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    detach(model, optimizer)
    assert len(optimizer.param_groups) == 1
    assert held(optimizer) == sorted(map(id, model.parameters()))
    if named:
        assert optimizer.param_groups[0]["param_names"] == [n for n, _ in model.named_parameters()]
    step(model, optimizer)


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": True},
        {"fused": True},
        {"fused": True, "lr": torch.tensor(0.01)},
        {"capturable": False, "amsgrad": True},
        {"differentiable": False, "maximize": True},
    ],
    ids=str,
)
def test_the_forms_of_adam_take_gates(options):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), **{"lr": 0.01, **options})
    attach(model, "gct", optimizer=optimizer)
    check_gates_move(model, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert len({id(rate) for rate in rates if isinstance(rate, torch.Tensor)}) in (0, len(rates))


@pytest.mark.parametrize("kind", ["Muon", "LBFGS"])
def test_optimizers_of_other_kinds_are_refused(kind):
    model = Net()
    matrices = [p for p in model.parameters() if p.dim() == 2 or kind == "LBFGS"]
    optimizer = getattr(torch.optim, kind)(matrices)
    with pytest.raises(ValueError, match=f"{kind} takes"):
        attach(model, "spem", optimizer=optimizer)
    assert not any(".gate." in name for name in model.state_dict())


SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


def advance(schedule):
    schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_gates_follow_a_scheduler_that_was_there_before(kind):
    model, plain = Net(), Net()
    optimizer, alone = (torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in (model, plain))
    schedule, expected = SCHEDULES[kind](optimizer), SCHEDULES[kind](alone)
    step(model, optimizer), step(plain, alone)
    attach(model, "spem", optimizer=optimizer)
    check_gates_move(model, optimizer)
    for _ in range(4):
        advance(schedule), advance(expected)
        rates = {group["lr"] for group in optimizer.param_groups}
        assert rates == {alone.param_groups[0]["lr"]}
    detach(model, optimizer)
    step(model, optimizer)
    advance(schedule)
    assert held(optimizer) == sorted(map(id, model.parameters()))


def test_a_scheduler_from_between_attach_and_detach_goes_on():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    attach(model, "spem", optimizer=optimizer)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    step(model, optimizer)
    detach(model, optimizer)
    step(model, optimizer)
    schedule.step()
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [0]
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_gates_without_weight_decay_need_such_a_group_beside_a_scheduler():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.01)
    lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match=r"no group without weight decay .*parameter_groups"):
        attach(model, "srm", optimizer=optimizer)
    assert not any(".gate." in name for name in model.state_dict())
    groups = spem.parameter_groups(model, weight_decay=0.01, norm_weight_decay=0.0)
    optimizer = torch.optim.SGD(groups, 0.1)
    lr_scheduler.StepLR(optimizer, 1)
    attach(model, "srm", optimizer=optimizer)
    check_gates_move(model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0]


@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_from_before_goes_on_with_the_same_gates(buffers):
    model = Net()
    average = AveragedModel(model, use_buffers=buffers)
    average.update_parameters(model)
    attach(model, "srm")
    with pytest.raises((RuntimeError, ValueError)):  # PyTorch's: the numbers of parameters differ
        copy.deepcopy(average).update_parameters(model)
    attach(average.module, "srm")
    average.module.load_state_dict(model.state_dict())
    average.update_parameters(model)
    assert torch.equal(average.eval()(X), model.eval()(X))


@pytest.mark.parametrize("name", EACH_GATE)
@pytest.mark.parametrize("at", ["residual", "stage"])
def test_groups_hold_each_parameter_once(name, at):
    model = Net()
    attach(model, name, at=at, **OPTIONS.get(name, {}))
    groups = spem.parameter_groups(model, lr=0.1, weight_decay=0.01, gate_lr=0.02)
    optimizer = torch.optim.SGD(groups)
    assert held(optimizer) == sorted(map(id, model.parameters()))
    settings = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    gates = [m for m in model.modules() if isinstance(m, spem.Attention)]
    exempt = {gate.get_parameter(n) for gate in gates for n in gate.no_weight_decay}
    for key, parameter in model.named_parameters():
        rate = 0.02 if ".gate." in key else 0.1
        assert settings[parameter] == (rate, 0 if parameter in exempt else 0.01)


def test_groups_of_norms_and_of_nothing():
    model = Net()
    attach(model, "spem")
    assert [len(g["params"]) for g in spem.parameter_groups(model)] == [len([*model.parameters()])]
    groups = spem.parameter_groups(model, weight_decay=0.1, norm_weight_decay=0)
    assert [g["weight_decay"] for g in groups] == [0.1, 0]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {p for norm in norms for p in norm.parameters(recurse=False)}
    expected |= {model.stem[0].bias, model.fc.bias}
    assert set(groups[1]["params"]) == expected
    assert spem.parameter_groups(nn.ReLU()) == []
    with pytest.raises(ValueError, match="gate_lr is -1, must be a finite number"):
        spem.parameter_groups(model, gate_lr=-1)
