"""Known blocks whose gated norm adds and rectifies: the function of their own forward pass."""

import copy
import io

import pytest
import timm
import torch
import torchvision
from gatings import EACH_GATE, OPTIONS, randomise, randomise_norms
from torch.fx import symbolic_trace

import spem
from spem import kernels
from spem.surgery import blocks

BUILD = {
    "torchvision basic": torchvision.models.resnet18,
    "torchvision bottleneck": torchvision.models.resnet50,
    "timm basic": lambda: timm.create_model("resnet18"),
    "timm bottleneck": lambda: timm.create_model("resnet50"),
}


def first_block(name):
    """Return the first two blocks of a network in float64, no norm at its start of 0."""
    torch.manual_seed(0)
    return randomise_norms(BUILD[name]().layer1[:2].double())


def results(model, x):
    """Return the output and all gradients."""
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def is_fused(model):
    return [isinstance(m, blocks._FusedBlock) for m in model]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("gate", EACH_GATE)
def test_a_fused_block_computes_the_function_of_its_own_pass(gate, name, backend, training):
    model = first_block(name).train(training)
    options = {k: v for k, v in OPTIONS.get(gate, {}).items() if k != "init"}
    spem.attach(model, gate, at="*.bn3" if "bottle" in name else "*.bn2", init=None, **options)
    randomise(model)
    x = torch.randn(2, model[0].conv1.in_channels, 7, 9, dtype=torch.float64)
    assert is_fused(model) == [True, True]
    with kernels.use(backend):
        found = results(model, x)
        for block in model:
            block.__class__ = block.original
        expected = results(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", BUILD)
def test_copies_pickles_and_detaching(name):
    model = first_block(name).eval()
    types, keys = [type(m) for m in model], [*model.state_dict()]
    x = torch.randn(1, model[0].conv1.in_channels, 8, 8, dtype=torch.float64)
    plain = model(x)
    spem.attach(model, "se", at="*.bn3" if "bottle" in name else "*.bn2")
    torch.testing.assert_close(model(x), plain)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert is_fused(other) == [True, True]
        assert torch.equal(other(x), model(x))
        spem.detach(other)
        assert [type(m) for m in other] == types
        assert [*other.state_dict()] == keys
    assert isinstance(model[0], types[0])


@pytest.mark.parametrize("name", ["torchvision basic", "timm bottleneck"])
def test_hooks_and_tracers_see_the_steps_of_the_block(name):
    model = first_block(name).eval()
    last = "bn3" if "bottle" in name else "bn2"
    spem.attach(model, "se", at=f"*.{last}")
    randomise(model)
    x = torch.randn(1, model[0].conv1.in_channels, 8, 8, dtype=torch.float64)
    fused = model(x)
    seen = []
    handle = getattr(model[0], last).register_forward_hook(
        lambda m, a, out: seen.append(out.clone())
    )
    torch.testing.assert_close(model(x), fused)
    handle.remove()
    assert seen[0].min() < 0
    names = [node.name for node in symbolic_trace(model).graph.nodes]
    assert any("add" in name for name in names)


def test_a_block_with_another_step_keeps_its_own_pass():
    model = randomise_norms(timm.create_model("seresnet18").layer1).eval()
    x = torch.randn(1, 64, 8, 8)
    plain = model(x)
    spem.attach(model, "eca", at="*.bn2")
    torch.testing.assert_close(model(x), plain)
    randomise(model)
    gated = model(x)
    model[0].se = torch.nn.Identity()
    assert not torch.equal(model(x), gated)
