"""Frozen parts of a network: they stay as they are, gates are trained, and runs resume."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise
from runs import SMALL, check_same
from torch import nn

from spem import attach, create_model, kernels
from spem.gates import GATES, Attention
from spem.train.fitting import Interrupted, fit
from spem.train.freezing import Freezing
from spem.train.parts import gate_parameters
from spem.train.recipe import Recipe

FROZEN = replace(SMALL, freeze="backbone", weight_decay=0.1)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def network(gate="spem"):
    torch.manual_seed(1)
    model = create_model("resnet8", gate, in_channels=1, **OPTIONS.get(gate, {}))
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.uniform_(-0.1, 0.1)
        elif "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    return randomise(model)


def changes(before, after):
    """Names of the state that a run has changed."""
    return {n for n, value in after.state_dict().items() if not torch.equal(before[n], value)}


@pytest.mark.parametrize("gate", EACH_GATE)
def test_only_gates_and_classifier_change_and_norms_keep_their_statistics(gate):
    model = network(gate)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(replace(FROZEN, epochs=1), model)
    in_gates = {f"{n}." for n, m in model.named_modules() if isinstance(m, Attention)}
    changed = changes(before, model)
    assert {"fc.weight", "fc.bias"} <= changed
    assert all(n.startswith(("fc.", *in_gates)) for n in changed)
    trained = [n for n, p in model.named_parameters() if p in gate_parameters(model)]
    assert not trained or {*trained} & changed
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.gates  # the compiler takes seconds
@pytest.mark.parametrize("gate", sorted(GATES))
def test_gates_of_frozen_norms_have_the_gradients_they_have_in_eager_mode(gate):
    images = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found = []
    for backend in ("eager", "compiled"):
        model = network(gate).double() if backend == "eager" else network(gate)
        Freezing(model.train(), FROZEN).apply(0)
        with kernels.use(backend):
            model(images.to(model.fc.weight.dtype)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)


def test_attached_gates_are_trained_in_a_frozen_network():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)]
    model = nn.Sequential(*body)
    attach(model, "se", at="1", reduction=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(replace(FROZEN, freeze="[01]"), model)
    changed = changes(before, model)
    assert {name for name in changed if "gate" not in name} == {"4.weight", "4.bias"}
    assert any("gate" in name for name in changed)


class Stopped(nn.Module):
    """A network that presses Ctrl-C in a forward pass."""

    def __init__(self, model, call):
        super().__init__()
        self.body, self.calls, self.call = model, 0, call

    def forward(self, x):
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.body(x)


@pytest.mark.parametrize("call", [3, 6])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_that_thaws_resumes_bit_for_bit_in_both_phases(call, optimizer, tmp_path):
    recipe = replace(FROZEN, freeze_epochs=1, optimizer=optimizer, lr=0.01, ema=0.9)
    recipe = replace(recipe, lr_factors={"backbone": 0.1}, schedule="onecycle", layer_decay=0.9)
    whole = fit(recipe, Stopped(network(), 0))
    with pytest.raises(Interrupted):
        fit(recipe, Stopped(network(), call), out=tmp_path / "run")
    check_same(whole, fit(recipe, Stopped(network(), 0), out=tmp_path / "run", resume=True))
    changed = changes(network().state_dict(), whole.model.body)
    assert "conv1.weight" in changed
    assert "bn1.running_mean" in changed


def test_a_network_that_was_frozen_before_stays_so():
    model = network()
    model.conv1.weight.requires_grad_(False)
    fit(replace(FROZEN, epochs=1, freeze="layer1"), model)
    assert not model.conv1.weight.requires_grad
    assert model.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            "layer9",
            "names nothing that could be frozen in this ResNet: write backbone, or a pattern",
        ),
        ("*", "leaves nothing to train in this ResNet: write backbone"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_named_before_a_folder_is_made(
    freeze, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        fit(replace(FROZEN, freeze=freeze), network(None), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_that_do_not_fit_are_named():
    for keys, message in (
        ({"freeze": None, "freeze_epochs": 1}, "freeze_epochs must be none without freeze, got 1"),
        ({"freeze_epochs": 1, "devices": 2}, "devices must be 1 with freeze_epochs, got 2"),
        ({"freeze_epochs": 1, "cuda_graph": True}, "freeze_epochs must be none with cuda_graph"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**{"freeze": "backbone"} | keys)
