"""Activation checkpoints, which run blocks again in the backward pass."""

import pytest
import torch
from gatings import EACH_GATE, build_gated, randomise
from torch import nn
from torch.utils.checkpoint import checkpoint

from spem.gates import create_gate
from spem.norm import GatedBatchNorm2d

X = torch.randn(3, 16, 5, 6, generator=torch.Generator().manual_seed(2))


def run(module, again):
    """Return the gradients of a module's input and parameters."""
    torch.manual_seed(0)  # some gates pool random regions in training
    module.zero_grad()
    x = X.clone().requires_grad_()
    again(module, x).square().sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("place", ["alone", "norm", "block"])
@pytest.mark.parametrize("name", EACH_GATE)
def test_a_checkpoint_changes_no_gradient(name, place, reentrant):
    module = build_gated(name, place, 16).eval()
    found = run(module, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
    torch.testing.assert_close(found, run(module, lambda m, x: m(x)))


def build_stage():
    """Return three norms whose gates share a unit."""
    first = create_gate("dianet", 16)
    gates = [first, *(create_gate("dianet", 16, leader=first) for _ in range(2))]
    norms = [GatedBatchNorm2d(16, gate=gate) for gate in gates]
    return randomise(nn.Sequential(*norms))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("which", [(0, 1, 2), (1,), (2,)])
def test_checkpoints_of_blocks_that_share_a_state_are_refused(which, reentrant):
    def again(stage, x):
        for index, norm in enumerate(stage):
            x = checkpoint(norm, x, use_reentrant=reentrant) if index in which else norm(x)
        return x

    with pytest.raises(RuntimeError, match="checkpoint whole stages, or none of their blocks"):
        run(build_stage(), again)


@pytest.mark.parametrize("reentrant", [False, True])
def test_whole_stages_that_share_a_state_are_checkpointed(reentrant):
    stage = build_stage()
    expected = run(stage, lambda m, x: m(x))
    for _ in range(2):
        found = run(stage, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(run(stage, lambda m, x: m(x)), expected)
