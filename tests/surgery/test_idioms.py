"""Training code that knows nothing of gates: no gate is left out, had twice or frozen unsaid."""

import warnings

import idioms
import pytest
import torch
from foreign import Net, X
from gatings import EACH_GATE, OPTIONS
from torch import nn

import spem
from spem import attach

HELPER = r"spem\.parameter_groups"


def gated(name, at="residual"):
    model = Net()
    attach(model, name, at=at, **OPTIONS.get(name, {}))
    return model


def train(model, optimizer, x=X, steps=2, clear=None):
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        (clear or optimizer.zero_grad)()
    model(X)


def freeze_by_switch(norm):
    norm.eval().requires_grad_(False)


def freeze_by_parameters(norm):
    for parameter in norm.parameters():
        parameter.requires_grad = False


def freeze_own(norm):
    norm.eval()
    norm.weight.requires_grad = norm.bias.requires_grad = False


def test_freezing_and_thawing_by_the_switch_says_nothing_itself():
    for module in gated("se").modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            assert not module.weight.requires_grad
            module.requires_grad_(True)
            assert all(p.requires_grad for m in module.modules() for p in m._parameters.values())


def freeze_norms(model, freeze):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the gated norm says of its parameters
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                freeze(module)


@pytest.mark.parametrize("at", ["residual", "stem"])
@pytest.mark.parametrize("name", EACH_GATE)
@pytest.mark.parametrize("idiom", idioms.IDIOMS, ids=lambda idiom: idiom.__name__)
def test_each_parameter_is_in_one_group_or_a_warning_names_the_helper(idiom, name, at):
    model = gated(name, at)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        groups = idiom(model)
        held = [id(p) for group in groups for p in group["params"]]
        apart = [id(p) for group in groups for p in {*group["params"]}]
        if len(apart) == len(set(apart)):
            train(model, torch.optim.SGD(groups, 0.01))
            # What PyTorch says of a parameter that one group lists twice.
            twice = [w for w in said if "duplicate parameters" in str(w.message)]
            assert bool(twice) == (len(held) > len(apart))
        else:  # PyTorch refuses these groups
            with pytest.raises(ValueError, match="more than one parameter group"):
                torch.optim.SGD(groups, 0.01)
    warned = [w for w in said if "spem.parameter_groups" in str(w.message)]
    if sorted(held) == sorted(map(id, model.parameters())):
        # What is listed from a gated norm might be had again from the layers of its gate.
        assert not warned or idiom is idioms.by_module_type
    elif len(held) == len(set(held)):
        assert len(warned) == 1
    else:
        # The gate of a hook hangs below a norm that is not ours: PyTorch's error is the only one.
        assert bool(warned) == (at == "residual")


@pytest.mark.parametrize("name", EACH_GATE)
@pytest.mark.parametrize("freeze", [freeze_by_switch, freeze_by_parameters])
@pytest.mark.parametrize("at", ["residual", "stem"])
def test_gates_that_freeze_with_their_norms_are_told(name, freeze, at):
    model = gated(name, at)
    freeze_norms(model, freeze)
    if not any(isinstance(m, spem.Attention) and [*m.parameters()] for m in model.modules()):
        train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01))
        return
    with pytest.warns(UserWarning, match=HELPER) as said:
        train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01))
    assert [str(w.message).split(" of ")[0] for w in said] in (["4"], ["1"], ["2"])
    for module in model.modules():
        if isinstance(module, spem.Attention):
            module.requires_grad_(True)
    model(X)
    train(model, torch.optim.SGD(spem.parameter_groups(model), 0.01))


@pytest.mark.parametrize(
    "prepare",
    [
        lambda m: m.requires_grad_(False),
        lambda m: m.requires_grad_(False).fc.requires_grad_(True),
        lambda m: m.layer1.requires_grad_(False),
        lambda m: m.eval(),
        lambda m: freeze_norms(m, freeze_own),
        lambda m: [m.layer1[0].bn2.gate.requires_grad_(False)],
    ],
)
def test_what_is_frozen_on_purpose_is_not_told(prepare):
    model = gated("se")
    prepare(model)
    x = X.clone().requires_grad_()
    train(model, torch.optim.SGD([x, *(p for p in model.parameters() if p.requires_grad)], 0.01), x)


def test_a_frozen_average_and_a_validation_say_nothing():
    model = gated("se")
    freeze_norms(model, freeze_by_switch)
    with torch.no_grad():
        model(X)
    model.eval()(X)


@pytest.mark.parametrize("freeze", [freeze_by_switch, freeze_by_parameters])
def test_networks_of_create_model_are_watched_too(freeze):
    model = spem.create_model("resnet8", "se")
    freeze_norms(model, freeze)
    with pytest.warns(UserWarning, match=r"3 of 3 gates are frozen .*'layer1.0.bn2'"):
        model(X)
    spem.detach(model)
    assert not model._forward_pre_hooks


def test_an_optimizer_from_before_attach_is_told_once():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, "spem")
    with pytest.warns(UserWarning, match=r"no optimizer moves 20 of 20 .*bn2.gate") as said:
        train(model, optimizer, steps=4)
    assert len(said) == 1
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attach(model, "spem")
    with pytest.warns(UserWarning, match="no optimizer moves"):
        train(model, optimizer, steps=25, clear=model.zero_grad)  # no gradient stays


def test_gradients_may_be_accumulated_and_gates_trained_by_turns():
    model = gated("spem")
    for _ in range(3):
        model(X).square().mean().backward()
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    model = gated("spem")
    gates = [p for n, p in model.named_parameters() if ".gate." in n]
    others = [p for n, p in model.named_parameters() if ".gate." not in n]
    for parameters in (others, others, gates, others, others):
        train(model, torch.optim.SGD(parameters, 0.1), steps=1, clear=model.zero_grad)


@pytest.mark.gates  # the import of the compiler takes seconds
def test_compiling_leaves_the_watch_out():
    model = gated("se")
    freeze_norms(model, freeze_by_switch)
    torch.compile(model, backend="eager", fullgraph=True)(X)
